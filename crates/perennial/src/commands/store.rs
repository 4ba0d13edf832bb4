//! `gc` and `df`.

use super::Context;
use crate::cli::args::DryRunArg;
use crate::failure::Result;

pub fn gc(context: &Context, _args: &DryRunArg) -> Result<()> {
    context.engine.recover_all()?;
    context.engine.free_unused()?;
    context.engine.free_image_layers()?;
    context.engine.empty_trash();
    Ok(())
}
pub fn df(_context: &Context) -> Result<()> {
    Ok(())
}
