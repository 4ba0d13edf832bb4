//! `gc` and `df`.

use super::Context;
use crate::cli::args::DryRunArg;
use crate::failure::Result;

pub fn gc(_context: &Context, _args: &DryRunArg) -> Result<()> {
    Ok(())
}
pub fn df(_context: &Context) -> Result<()> {
    Ok(())
}
