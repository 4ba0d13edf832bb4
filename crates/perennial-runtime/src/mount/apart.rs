//! Work that needs a working directory or mounts of its own, on a thread that has them and ends with the work.

use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs `work` on a thread that shares neither `flags` nor its working directory with others.
pub(super) fn run<T: Send>(flags: UnshareFlags, work: impl FnOnce() -> Result<T, Errno> + Send) -> Result<T, Errno> {
    std::thread::scope(|scope| {
        let helper = std::thread::Builder::new().spawn_scoped(scope, || {
            #[expect(unsafe_code, reason = "rustix marks every unshare unsafe because of FILES, which is not used")]
            // SAFETY: the callers unshare FS or NEWNS; no descriptor table is touched.
            unsafe { unshare_unsafe(flags) }?;
            work()
        });
        match helper.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(Errno::AGAIN),
        }
    })
}
