//! How containers, generations and paths in them are named: `NAME`, `NAME@SEQ`, `NAME@SEQ:PATH`.

use crate::engine::Engine;
use crate::failure::{Code, Failure, Result};
use perennial_core::generations::choose::Selector;
use perennial_core::id::{ContainerName, ParseIdError};

/// A container and, where one is named, a generation of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The container.
    pub name: ContainerName,
    /// The generation; the current one where absent.
    pub selector: Option<Selector>,
}

/// Parses `NAME` or `NAME@SEQ`.
///
/// # Errors
/// Where either part is not valid.
pub fn parse(text: &str) -> Result<Reference> {
    let (name, seq) = match text.split_once('@') {
        Some((name, seq)) => (name, Some(seq)),
        None => (text, None),
    };
    let selector = seq.map(parse_seq).transpose()?;
    Ok(Reference { name: Engine::parse_name(name)?, selector })
}

/// Parses `NAME@SEQ`.
///
/// # Errors
/// Where the generation is missing or either part is not valid.
pub fn parse_generation(text: &str) -> Result<(ContainerName, Selector)> {
    let reference = parse(text)?;
    let missing = || Failure::new(Code::Usage, format!("{text:?} names no generation")).hint("write it as NAME@SEQ");
    Ok((reference.name, reference.selector.ok_or_else(missing)?))
}

/// Parses `NAME[@SEQ]:PATH`.
///
/// # Errors
/// Where the path is missing or the rest is not valid.
pub fn parse_path(text: &str) -> Result<(Reference, String)> {
    let missing = || Failure::new(Code::Usage, format!("{text:?} names no path")).hint("write it as NAME@SEQ:PATH");
    let (reference, path) = text.split_once(':').ok_or_else(missing)?;
    if path.is_empty() {
        return Err(missing());
    }
    Ok((parse(reference)?, path.to_owned()))
}

/// Parses a generation's number.
///
/// # Errors
/// Where it is not a whole number from 1.
pub fn parse_seq(text: &str) -> Result<Selector> {
    Selector::parse_seq(text).map_err(|error: ParseIdError| {
        Failure::new(Code::Usage, error).hint("`perennial generations` lists the numbers to choose from")
    })
}

/// Parses an instant.
///
/// # Errors
/// Where it is not RFC 3339.
pub fn parse_at(text: &str) -> Result<Selector> {
    Selector::parse_at(text).map_err(|error| {
        Failure::new(Code::Usage, error).hint("`perennial generations` shows the times to choose from")
    })
}
