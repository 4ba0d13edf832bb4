//! Whether the kernel would execute a program, judged before anything runs (row A7).
//!
//! An `execve` that fails inside a container that has been made looks like an exit of the container, and would append a
//! generation. So what would be executed is looked at first, as execve(2) does it: the program is found, a script's
//! interpreter and that one's interpreter are followed, and an ELF program's loader must be there.
//!
//! A refusal is given only where the kernel would certainly refuse. Whatever is not known, such as what a volume hides
//! or a handler of `binfmt_misc` takes, is left to the runtime. The files are the container's: nothing in them is trusted.

use super::Process;
use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Bytes of a program the kernel looks at first (`BINPRM_BUF_SIZE`).
pub const HEAD_BYTES: usize = 256;
/// Interpreters of interpreters the kernel follows (`exec_binprm`).
const INTERPRETERS_MAX: usize = 5;
/// Most bytes of an ELF program header table the kernel reads (`ELF_MIN_ALIGN` or 64 KiB).
const TABLE_BYTES_MAX: usize = 65_536;
/// Most bytes of a loader's path with its NUL (`PATH_MAX`).
const LOADER_BYTES_MAX: u64 = 4096;
/// Type of the program header that names the loader.
const PT_INTERP: u32 = 3;
/// Types of ELF files that are programs: `ET_EXEC` and `ET_DYN`.
const PROGRAM_TYPES: [u16; 2] = [2, 3];

/// What a path in the container leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<F> {
    /// A regular file that somebody may execute.
    File(F),
    /// Nothing.
    Missing,
    /// Something else than a regular file, or one that nobody may execute.
    NotExecutable,
    /// It is not known: it lies in what is mounted over the tree, or cannot be looked at.
    Unknown,
}

/// The container's files as its process will see them.
pub trait Tree {
    /// An open file.
    type File;
    /// Looks up an absolute path.
    fn find(&self, path: &[u8]) -> Found<Self::File>;
    /// Returns up to `bytes_max` bytes from `at`: fewer where the file ends, nothing where it cannot be read.
    fn read(&self, file: &Self::File, at: u64, bytes_max: usize) -> Option<Vec<u8>>;
}

/// What of the host decides what its kernel executes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExecFacts<'a> {
    /// Architecture by Rust's name, such as `x86_64`.
    pub arch: &'a str,
    /// Whether `binfmt_misc` has handlers, which may take any file.
    pub has_handlers: bool,
    /// Whether an init program executes it, with `execvp`: that gives what has no known format to the shell.
    pub by_init: bool,
}

/// Why the kernel would not execute a program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecRefusal {
    /// Nothing of that name.
    #[error("cannot execute {program:?}: there is no such program in the container")]
    NotFound {
        /// The program as given.
        program: String,
    },
    /// It cannot be executed by anybody.
    #[error("cannot execute {program:?}: it is not an executable file")]
    NotExecutable {
        /// The program as given.
        program: String,
    },
    /// What it names as its interpreter or loader is missing.
    #[error("cannot execute {program:?}: its interpreter {interpreter:?} is missing in the container")]
    InterpreterMissing {
        /// The program that names it.
        program: String,
        /// The missing path.
        interpreter: String,
    },
    /// What it names as its interpreter or loader cannot be executed.
    #[error("cannot execute {program:?}: its interpreter {interpreter:?} cannot be executed")]
    InterpreterNotExecutable {
        /// The program that names it.
        program: String,
        /// The path.
        interpreter: String,
    },
    /// Neither a script nor a program of this machine.
    #[error("cannot execute {program:?}: exec format error, neither a script with `#!` nor a program of this machine")]
    Format {
        /// The program.
        program: String,
    },
    /// Interpreters of interpreters without end.
    #[error("cannot execute {program:?}: more than {INTERPRETERS_MAX} interpreters of interpreters")]
    TooDeep {
        /// The program.
        program: String,
    },
}

impl ExecRefusal {
    /// Whether something is missing, for which shells and engines have an exit code of its own.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound { .. } | Self::InterpreterMissing { .. } => true,
            Self::NotExecutable { .. }
            | Self::InterpreterNotExecutable { .. }
            | Self::Format { .. }
            | Self::TooDeep { .. } => false,
        }
    }
}

/// Judges whether the kernel would execute the program of `process`.
///
/// # Errors
/// Where it would certainly refuse.
pub fn judge<T: Tree>(process: &Process, facts: &ExecFacts<'_>, tree: &T) -> Result<(), ExecRefusal> {
    let Some(program) = process.args.first() else { return Ok(()) };
    match find_program(process, program, tree) {
        Found::File(file) => follow(process, program, file, facts, tree),
        Found::Missing => Err(ExecRefusal::NotFound { program: program.clone() }),
        Found::NotExecutable => Err(ExecRefusal::NotExecutable { program: program.clone() }),
        Found::Unknown => Ok(()),
    }
}

/// Looks the program up as the runtime and `execvp` do.
fn find_program<T: Tree>(process: &Process, program: &str, tree: &T) -> Found<T::File> {
    if program.contains('/') {
        return tree.find(&absolute(&process.cwd, program.as_bytes()));
    }
    let Some(path) = process.env.iter().find_map(|text| text.strip_prefix("PATH=")) else { return Found::Unknown };
    let mut worst = Found::Missing;
    for directory in path.split(':') {
        if !directory.starts_with('/') {
            return Found::Unknown;
        }
        match tree.find(format!("{directory}/{program}").as_bytes()) {
            Found::Missing => {}
            Found::NotExecutable => worst = Found::NotExecutable,
            found @ (Found::File(_) | Found::Unknown) => return found,
        }
    }
    worst
}

/// Follows interpreters to the program that the kernel would run.
fn follow<T: Tree>(
    process: &Process,
    program: &str,
    mut file: T::File,
    facts: &ExecFacts<'_>,
    tree: &T,
) -> Result<(), ExecRefusal> {
    let mut name = program.to_owned();
    for _ in 0..=INTERPRETERS_MAX {
        let Some(head) = tree.read(&file, 0, HEAD_BYTES) else { return Ok(()) };
        let (path, is_loader) = match shape(&head, facts.arch) {
            Shape::Script(path) => (path, false),
            Shape::Program(table) => match loader_of(&table, &mut |at, bytes_max| tree.read(&file, at, bytes_max)) {
                Loader::None => return Ok(()),
                Loader::Path(path) => (path, true),
                Loader::Malformed => return format_refusal(name, facts),
            },
            Shape::Other => return format_refusal(name, facts),
            Shape::Unknown => return Ok(()),
        };
        let interpreter = || String::from_utf8_lossy(&path).into_owned();
        let refused = |program| ExecRefusal::InterpreterNotExecutable { program, interpreter: interpreter() };
        match tree.find(&absolute(&process.cwd, &path)) {
            Found::Missing => {
                return Err(ExecRefusal::InterpreterMissing { program: name, interpreter: interpreter() });
            }
            Found::NotExecutable => return Err(refused(name)),
            Found::Unknown => return Ok(()),
            Found::File(found) if is_loader => {
                let is_elf = tree.read(&found, 0, 4).is_none_or(|head| head == *b"\x7fELF");
                return if is_elf { Ok(()) } else { Err(refused(name)) };
            }
            Found::File(found) => (file, name) = (found, interpreter()),
        }
    }
    Err(ExecRefusal::TooDeep { program: program.to_owned() })
}

fn format_refusal(program: String, facts: &ExecFacts<'_>) -> Result<(), ExecRefusal> {
    match facts.has_handlers || facts.by_init {
        true => Ok(()),
        false => Err(ExecRefusal::Format { program }),
    }
}

fn absolute(cwd: &str, path: &[u8]) -> Vec<u8> {
    match path.first() {
        Some(b'/') => path.to_vec(),
        Some(_) | None => [cwd.as_bytes(), b"/", path].concat(),
    }
}

/// What the first bytes of a file say.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    /// A script, with the path of its interpreter.
    Script(Vec<u8>),
    /// An ELF program of this machine.
    Program(Table),
    /// Nothing this kernel knows by itself.
    Other,
    /// Something that kernels judge differently.
    Unknown,
}

/// Where the program headers of an ELF file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Table {
    is_64: bool,
    at: u64,
    bytes: usize,
    entry_bytes: usize,
}

fn shape(head: &[u8], arch: &str) -> Shape {
    match head {
        [b'#', b'!', rest @ ..] => script(rest, head.len() < HEAD_BYTES),
        [0x7f, b'E', b'L', b'F', ..] => program(head, arch),
        _ => Shape::Other,
    }
}

/// Reads the line after `#!` as the kernel does: blanks, a path, and what ends it. `is_whole` says that the file ends
/// with these bytes, which ends the path, too.
fn script(rest: &[u8], is_whole: bool) -> Shape {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let begin = rest.iter().position(|byte| !is_blank(byte)).unwrap_or(rest.len());
    let path = rest.get(begin..).unwrap_or_default();
    let end = path.iter().position(|byte| is_blank(byte) || matches!(byte, b'\n' | 0));
    match (end, is_whole) {
        (Some(0), _) => Shape::Other,
        (Some(end), _) => Shape::Script(path.get(..end).unwrap_or_default().to_vec()),
        (None, true) if path.is_empty() => Shape::Other,
        (None, true) => Shape::Script(path.to_vec()),
        // A path that does not end here: older kernels cut it, newer ones refuse it.
        (None, false) => Shape::Unknown,
    }
}

/// Reads an ELF header, and tells programs of this machine from others.
fn program(head: &[u8], arch: &str) -> Shape {
    // Class (1 for 32 bits, 2 for 64) and machine, with the 32-bit one that the kernel may run, too. All are of little
    // endian. That a kernel without its 32-bit half refuses such a program is left to it.
    let machines: &[(u8, u16)] = match arch {
        "x86_64" => &[(2, 62), (1, 62), (1, 3)],
        "aarch64" => &[(2, 183), (1, 40)],
        "riscv64" => &[(2, 243), (1, 243)],
        _ => return Shape::Unknown,
    };
    let (Some(&class), Some(&order)) = (head.get(4), head.get(5)) else { return Shape::Other };
    let (Some(kind), Some(machine)) = (number::<2>(head, 16), number::<2>(head, 18)) else { return Shape::Other };
    let is_native = order == 1 && machines.iter().any(|(of, number)| (*of, u64::from(*number)) == (class, machine));
    if !is_native || !PROGRAM_TYPES.iter().any(|of| u64::from(*of) == kind) {
        return Shape::Other;
    }
    let is_64 = class == 2;
    let (at, entry, count, expected) = match is_64 {
        true => (number::<8>(head, 32), number::<2>(head, 54), number::<2>(head, 56), 56),
        false => (number::<4>(head, 28), number::<2>(head, 42), number::<2>(head, 44), 32),
    };
    let (Some(at), Some(entry), Some(count)) = (at, entry, count) else { return Shape::Other };
    let bytes = usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(expected);
    match entry == u64::try_from(expected).unwrap_or(0) && (1..=TABLE_BYTES_MAX).contains(&bytes) {
        true => Shape::Program(Table { is_64, at, bytes, entry_bytes: expected }),
        false => Shape::Other,
    }
}

/// What the program headers say about a loader.
enum Loader {
    /// There is none: the program is complete.
    None,
    /// Its path.
    Path(Vec<u8>),
    /// The kernel does not take such headers.
    Malformed,
}

/// Finds the first loader in a program header table. A table that cannot be read is left to the kernel.
fn loader_of(table: &Table, read: &mut dyn FnMut(u64, usize) -> Option<Vec<u8>>) -> Loader {
    let Some(bytes) = read(table.at, table.bytes) else { return Loader::None };
    if bytes.len() < table.bytes {
        return Loader::Malformed;
    }
    let is_loader = |entry: &&[u8]| number::<4>(entry, 0) == Some(u64::from(PT_INTERP));
    let Some(entry) = bytes.chunks_exact(table.entry_bytes).find(is_loader) else { return Loader::None };
    let (at, length) = match table.is_64 {
        true => (number::<8>(entry, 8), number::<8>(entry, 32)),
        false => (number::<4>(entry, 4), number::<4>(entry, 16)),
    };
    let (Some(at), Some(length @ 2..=LOADER_BYTES_MAX)) = (at, length) else { return Loader::Malformed };
    let length = usize::try_from(length).unwrap_or(0);
    let Some(path) = read(at, length) else { return Loader::None };
    match path.split_last() {
        // The path ends with the first NUL, as texts of the kernel do.
        Some((0, _)) if path.len() == length => {
            Loader::Path(path.split(|byte| *byte == 0).next().unwrap_or_default().to_vec())
        }
        Some(_) | None => Loader::Malformed,
    }
}

/// Reads `N` bytes of little endian at a place.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(N)?)?;
    Some(field.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
}
