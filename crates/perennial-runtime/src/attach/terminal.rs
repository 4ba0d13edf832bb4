//! Our own terminal: its settings saved, changed and put back.

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::stdin;

/// The settings of standard input's terminal, put back when this is dropped.
#[derive(Debug)]
pub struct SavedTerminal {
    saved: Option<(OwnedFd, Termios)>,
}

impl SavedTerminal {
    /// Saves the settings, if standard input is a terminal.
    #[must_use]
    pub fn of_stdin() -> Self {
        let input = stdin();
        let saved =
            isatty(&input).then(|| Some((input.as_fd().try_clone_to_owned().ok()?, tcgetattr(&input).ok()?))).flatten();
        Self { saved }
    }

    /// Makes the terminal raw: every key goes to the container.
    pub(super) fn make_raw(&self) -> Result<(), Errno> {
        let Some((fd, settings)) = &self.saved else { return Ok(()) };
        let mut raw = settings.clone();
        raw.make_raw();
        tcsetattr(fd, OptionalActions::Now, &raw)
    }

    /// Returns its lines and columns.
    pub(crate) fn size(&self) -> Option<(u16, u16)> {
        let (fd, _) = self.saved.as_ref()?;
        tcgetwinsize(fd).ok().map(|size| (size.ws_row, size.ws_col))
    }
}

impl Drop for SavedTerminal {
    fn drop(&mut self) {
        if let Some((fd, settings)) = &self.saved {
            // A terminal that has gone needs no order.
            tcsetattr(fd, OptionalActions::Now, settings).ok();
        }
    }
}
