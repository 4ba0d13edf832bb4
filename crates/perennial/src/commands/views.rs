//! `diff`, `browse`, `cp`, `rebase`.

use super::Context;
use crate::cli::args::{BrowseArgs, CpArgs, DiffArgs, RebaseArgs};
use crate::failure::Result;

pub fn rebase(_context: &Context, _args: &RebaseArgs) -> Result<()> {
    Ok(())
}
pub fn diff(_context: &Context, _args: &DiffArgs) -> Result<()> {
    Ok(())
}
pub fn browse(_context: &Context, _args: &BrowseArgs) -> Result<()> {
    Ok(())
}
pub fn cp(_context: &Context, _args: &CpArgs) -> Result<()> {
    Ok(())
}
