//! Fixtures and comparisons for tests: what the other crates' tests stand on.
//!
//! - [`tree`]: a complete listing of a tree and the differences of two.
//! - [`image`]: small images in every form that `image import` takes.
//! - [`loopfs`]: file systems of a chosen kind and size, mounted from a file.
//! - [`cli`]: a driver of the command under test, and the search for what it left behind.
//! - [`kill`]: kills a command at every one of its system calls, or fails each of them once.
//! - [`traps`]: everything that packers and overlays are known to get wrong, in stages, for the program `trap-actor`.
//! - [`model`]: random scripts of file system operations, for containers and plain directories alike.
//! - [`overlay`]: layers stacked by the kernel alone, for comparison.
//! - [`guest`]: a virtual machine with a disk of its own, whose power can be cut.
//! - [`writelog`]: what it has written, and disks as a cut leaves them.
//! - [`actor`]: that program, built, and images with it.
//! - [`bytes`], [`copy`], [`host`]: what the others share.
//!
//! Everything here needs root, and fails without it. Functions return errors that say what the host lacks; a
//! fixture that could not be made is never passed over in silence.

pub mod actor;
pub mod bytes;
pub mod cli;
pub mod copy;
pub mod guest;
pub mod host;
pub mod image;
pub mod kill;
pub mod loopfs;
pub mod model;
pub mod netns;
pub mod overlay;
pub mod traps;
pub mod tree;
pub mod writelog;
