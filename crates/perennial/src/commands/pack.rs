//! `pack`.

use super::Context;
use crate::cli::args::PackArgs;
use crate::cli::output::{self, Style};
use crate::cli::table;
use crate::engine::Engine;
use crate::engine::pack::{PackOrder, Packed};
use crate::failure::{Code, Failure, Result};
use serde_json::json;

/// Packs what only older generations show, of one container or of all.
///
/// # Errors
/// Where the name is unknown, the disk fails, or somebody else is at everything that could be packed.
pub fn pack(context: &Context, args: &PackArgs) -> Result<()> {
    let of = match &args.name {
        Some(name) => Some(context.engine.seen(&Engine::parse_name(name)?)?.value.id),
        None => None,
    };
    let packed = context.engine.pack(&PackOrder { of, hot: args.hot, is_background: false })?;
    show(context, &packed);
    if !packed.is_busy || packed.objects > 0 {
        return Ok(());
    }
    Err(Failure::new(Code::Conflict, "runs, views or other commands use what could be packed")
        .hint("try again when they are done; nothing was changed"))
}

fn show(context: &Context, packed: &Packed) {
    if context.style == Style::Json {
        let generations: Vec<_> =
            packed.generations.iter().map(|(name, seq)| json!({"container": name, "seq": seq})).collect();
        let refused: Vec<_> =
            packed.refused.iter().map(|(object, why)| json!({"object": object, "reason": why})).collect();
        output::json(&json!({
            "generations": generations, "objects": packed.objects, "freed_bytes": packed.freed_bytes,
            "packed_bytes": packed.packed_bytes, "refused": refused, "busy": packed.is_busy,
        }));
        return;
    }
    for (name, seq) in &packed.generations {
        output::line(format!("{name}@{seq} is cold: a start takes it out of packs first"));
    }
    for (object, why) in &packed.refused {
        output::line(format!("object {object} stays as it is: {why}"));
    }
    if packed.objects > 0 {
        let (freed, packs) = (table::bytes(packed.freed_bytes), table::bytes(packed.packed_bytes));
        output::line(format!("packed {} contents: {freed} became {packs}", packed.objects));
    } else if !packed.is_busy {
        output::line("nothing to pack");
    }
}
