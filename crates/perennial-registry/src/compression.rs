//! Unpacks gzip (any number of members) and zstd (any number of frames), told apart by their first bytes; packs both.
//!
//! Media types are not asked: they are wrong often enough that other tools do not ask them either.

use std::io::{self, Cursor, Read, Write};

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Skippable frames have 16 magic numbers that differ in the low half of the first byte.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z'];
const BZIP2: &[u8] = b"BZh";

/// How a stream is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// Returns how a stream that begins with `head` is packed, or the name of a packing that is not supported.
pub(crate) fn packing(head: &[u8]) -> Result<Packing, &'static str> {
    if head.starts_with(GZIP) {
        Ok(Packing::Gzip)
    } else if head.starts_with(ZSTD)
        || (head.get(1..4) == Some(ZSTD_SKIPPABLE) && head.first().is_some_and(|b| b & 0xf0 == 0x50))
    {
        Ok(Packing::Zstd)
    } else if head.starts_with(XZ) {
        Err("xz")
    } else if head.starts_with(BZIP2) {
        Err("bzip2")
    } else {
        Ok(Packing::Plain)
    }
}

/// Returns a reader of the unpacked stream, and how it was packed.
pub(crate) fn unpacked<'a>(mut input: impl Read + 'a) -> io::Result<(Box<dyn Read + 'a>, Packing)> {
    let mut head = Vec::new();
    input.by_ref().take(6).read_to_end(&mut head)?;
    let packing = packing(&head).map_err(|name| {
        io::Error::new(io::ErrorKind::Unsupported, format!("it is packed by {name}; only gzip and zstd are supported"))
    })?;
    let whole = Cursor::new(head).chain(input);
    let reader: Box<dyn Read + 'a> = match packing {
        Packing::Plain => Box::new(whole),
        Packing::Gzip => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::new(whole)?),
    };
    Ok((reader, packing))
}

/// How the layers of an exported image are packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// By gzip, which every engine can unpack.
    Gzip,
    /// By zstd, which is faster and smaller, and which engines of the last years can unpack.
    #[default]
    Zstd,
}

impl Compression {
    /// Returns the media type of a layer that is packed like this.
    pub(crate) const fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// Packs what is written to it.
pub(crate) enum Packer<W: Write> {
    Plain(W),
    Gzip(flate2::write::GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Packer<W> {
    pub(crate) fn new(compression: Compression, output: W) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(output),
            Compression::Gzip => Self::Gzip(flate2::write::GzEncoder::new(output, flate2::Compression::default())),
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(output, zstd::DEFAULT_COMPRESSION_LEVEL)?;
                encoder.include_checksum(true)?;
                Self::Zstd(encoder)
            }
        })
    }

    /// Writes the end and returns the writer.
    pub(crate) fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(output) => Ok(output),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Packer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(output) => output.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(output) => output.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}
