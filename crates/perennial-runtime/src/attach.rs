//! Client.

/// Terminal settings to be put back.
#[derive(Debug)]
pub struct SavedTerminal;
impl SavedTerminal {
    /// Saves.
    pub fn of_stdin() -> Self {
        Self
    }
}
