//! The keys that leave a container running: ctrl-p ctrl-q, as everywhere.

const FIRST: u8 = 0x10;
const SECOND: u8 = 0x11;

/// Looks for the keys in what is typed.
#[derive(Debug, Clone, Default)]
pub struct DetachKeys {
    holds_first: bool,
}

impl DetachKeys {
    /// Returns the bytes to pass on, and whether the keys were pressed; what follows them is dropped. The first key is
    /// held back until the next one shows that it was meant for the container.
    pub fn feed(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(bytes.len().saturating_add(1));
        for byte in bytes {
            match (self.holds_first, *byte) {
                (true, SECOND) => return (passed, true),
                (true, FIRST) => passed.push(FIRST),
                (true, other) => {
                    passed.extend([FIRST, other]);
                    self.holds_first = false;
                }
                (false, FIRST) => self.holds_first = true,
                (false, other) => passed.push(other),
            }
        }
        (passed, false)
    }
}
