//! Messages between a supervisor and its clients, one per packet of a `SOCK_SEQPACKET` socket.
//!
//! A packet is one byte of kind and the rest as the kind says; numbers are little-endian. Both ends are the same
//! program on the same machine, but not always the same version: an unknown kind is refused, not guessed.

use perennial_core::process::Signal;

/// Most bytes of output or input in one packet.
pub const DATA_BYTES_MAX: usize = 32 * 1024;
/// Longest packet: data and its kind, or a message of at most as much text.
pub const PACKET_BYTES_MAX: usize = DATA_BYTES_MAX + 16;
/// Most bytes of input a client may have on the way before they are taken ([`Reply::InputTaken`]).
pub const INPUT_WINDOW_BYTES: usize = 256 * 1024;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Output from now on.
    Attach,
    /// Bytes for standard input.
    Input(Vec<u8>),
    /// Standard input has ended.
    InputEnd,
    /// The client's terminal has this size.
    Resize {
        /// Lines.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// A signal for the container's init.
    Signal(Signal),
    /// End the container: stop signal, then after the time-out `SIGKILL`.
    Stop {
        /// Seconds until it is killed; the container's own where absent.
        timeout_s: Option<u32>,
    },
    /// Tell how it is.
    Status,
}

/// What the supervisor tells a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Bytes of standard output.
    Output(Vec<u8>),
    /// Bytes of standard error.
    ErrorOutput(Vec<u8>),
    /// So many bytes of output were left out because the client read too slowly; the log has them.
    Skipped(u64),
    /// So many bytes of input have reached the container, and may be sent anew.
    InputTaken(u32),
    /// The request was carried out.
    Done,
    /// The request was not carried out.
    Refused(String),
    /// How it is, as a JSON object.
    Status(String),
    /// The container's process runs.
    Started,
    /// The run is over and everything about it is recorded; the exit code.
    Exit(i32),
    /// The run failed.
    Failed {
        /// Exit code that says how.
        code: i32,
        /// What happened.
        message: String,
    },
}

/// A packet that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a packet of {bytes} bytes and kind {kind:?} is not known")]
pub struct ProtocolError {
    bytes: usize,
    kind: Option<u8>,
}

impl Request {
    /// Returns the packet.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Attach => vec![1],
            Self::Input(bytes) => packet(2, &[bytes]),
            Self::InputEnd => vec![3],
            Self::Resize { rows, columns } => packet(4, &[&rows.to_le_bytes(), &columns.to_le_bytes()]),
            Self::Signal(signal) => vec![5, signal.number()],
            Self::Stop { timeout_s: None } => vec![6],
            Self::Stop { timeout_s: Some(seconds) } => packet(6, &[&seconds.to_le_bytes()]),
            Self::Status => vec![7],
        }
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// If its kind is unknown or its length wrong.
    pub fn decode(packet: &[u8]) -> Result<Self, ProtocolError> {
        let request = match packet {
            [1] => Self::Attach,
            [2, bytes @ ..] => Self::Input(bytes.to_vec()),
            [3] => Self::InputEnd,
            [4, a, b, c, d] => {
                Self::Resize { rows: u16::from_le_bytes([*a, *b]), columns: u16::from_le_bytes([*c, *d]) }
            }
            [5, number] => Self::Signal(Signal::try_from(*number).map_err(|_| unknown(packet))?),
            [6] => Self::Stop { timeout_s: None },
            [6, a, b, c, d] => Self::Stop { timeout_s: Some(u32::from_le_bytes([*a, *b, *c, *d])) },
            [7] => Self::Status,
            _ => return Err(unknown(packet)),
        };
        Ok(request)
    }
}

impl Reply {
    /// Returns the packet.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Output(bytes) => packet(1, &[bytes]),
            Self::ErrorOutput(bytes) => packet(2, &[bytes]),
            Self::Skipped(bytes) => packet(3, &[&bytes.to_le_bytes()]),
            Self::InputTaken(bytes) => packet(4, &[&bytes.to_le_bytes()]),
            Self::Done => vec![5],
            Self::Refused(text) => packet(6, &[shorten(text).as_bytes()]),
            Self::Status(text) => packet(7, &[shorten(text).as_bytes()]),
            Self::Started => vec![8],
            Self::Exit(code) => packet(9, &[&code.to_le_bytes()]),
            Self::Failed { code, message } => packet(10, &[&code.to_le_bytes(), shorten(message).as_bytes()]),
        }
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// If its kind is unknown or its length wrong.
    pub fn decode(packet: &[u8]) -> Result<Self, ProtocolError> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let reply = match packet {
            [1, bytes @ ..] => Self::Output(bytes.to_vec()),
            [2, bytes @ ..] => Self::ErrorOutput(bytes.to_vec()),
            [3, bytes @ ..] => Self::Skipped(u64::from_le_bytes(bytes.try_into().map_err(|_| unknown(packet))?)),
            [4, a, b, c, d] => Self::InputTaken(u32::from_le_bytes([*a, *b, *c, *d])),
            [5] => Self::Done,
            [6, bytes @ ..] => Self::Refused(text(bytes)),
            [7, bytes @ ..] => Self::Status(text(bytes)),
            [8] => Self::Started,
            [9, a, b, c, d] => Self::Exit(i32::from_le_bytes([*a, *b, *c, *d])),
            [10, a, b, c, d, bytes @ ..] => {
                Self::Failed { code: i32::from_le_bytes([*a, *b, *c, *d]), message: text(bytes) }
            }
            _ => return Err(unknown(packet)),
        };
        Ok(reply)
    }
}

fn unknown(packet: &[u8]) -> ProtocolError {
    ProtocolError { bytes: packet.len(), kind: packet.first().copied() }
}

fn packet(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut packet = vec![kind];
    parts.iter().for_each(|part| packet.extend_from_slice(part));
    packet
}

/// Cuts a text to what fits, between characters.
fn shorten(text: &str) -> &str {
    let mut end = text.len().min(DATA_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default()
}
