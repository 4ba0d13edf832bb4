//! `push`, `pull`, `remote`.

use super::{Context, reference};
use crate::cli::args::{FetchArgs, ImagePushArgs, KeyArgs, NameArg, PushArgs, RemoteCommand};
use crate::cli::output::{self, Style};
use crate::cli::progress::TotalBar;
use crate::cli::table;
use crate::engine::Engine;
use crate::engine::travel::keys::{KeyOrder, recipients_of};
use crate::engine::travel::publish::{PublishOrder, Published};
use crate::engine::travel::pull::{Extent, PullPlan, Pulled, Trust};
use crate::engine::travel::push::Pushed;
use crate::engine::travel::remotes::Added;
use crate::engine::travel::{Order, certificates, login_of};
use crate::failure::{Code, Failure, Result};
use perennial_core::generations::choose::Selector;
use perennial_core::id::{ParseIdError, Seq};
use perennial_core::travel::cipher::{Dropping, Recipient};
use perennial_registry::repository::Traffic;
use perennial_registry::trust;
use serde_json::{Value, json};

/// Sends a container.
///
/// # Errors
/// Where it cannot be sent, or somebody else has sent another history.
pub fn push(context: &Context, args: &PushArgs) -> Result<()> {
    let reference = reference::parse(&args.generation)?;
    let mut order = Order::new(reference.name, args.remote.clone(), &args.login)?;
    order.until = match reference.selector {
        Some(Selector::Seq(seq)) => Some(seq),
        Some(_) => return Err(Failure::new(Code::Usage, "a generation to send is named by its number")),
        None => None,
    };
    order.other_name = args.other_name.as_deref().map(Engine::parse_name).transpose()?;
    order.is_whole = args.whole;
    if args.drop_recipients {
        order.dropping = Dropping::Asked;
    }
    let bar = TotalBar::new(context.style, "sending");
    let pushed = context.engine.push(&order, &bar);
    bar.clear();
    show_pushed(context, &order, &pushed?);
    Ok(())
}

fn traffic_json(traffic: Traffic) -> Value {
    let Traffic { sent_bytes, received_bytes, requests } = traffic;
    json!({"sent_bytes": sent_bytes, "received_bytes": received_bytes, "requests": requests})
}

fn show_pushed(context: &Context, order: &Order, pushed: &Pushed) {
    let Pushed { repository, new, head, left_out, loss, is_running, is_nothing, is_guarded, traffic } = pushed;
    if context.style == Style::Json {
        output::json(&json!({
            "container": order.name, "repository": repository, "new": new, "head": head, "left_out": left_out,
            "lost": loss.generations, "running": is_running, "nothing_to_send": is_nothing, "guarded": is_guarded, "traffic": traffic_json(*traffic),
        }));
        return;
    }
    for seq in left_out {
        output::remark(format!("{}@{seq} is damaged and was left out", order.name));
    }
    for seq in &loss.generations {
        output::remark(format!("{}@{seq} was only in {repository}, and is there no more", order.name));
    }
    if loss.is_unseen {
        output::remark(format!("what others had sent to {repository} since this machine last looked is there no more"));
    }
    if *is_nothing {
        output::line(format!("{repository} has everything"));
    } else {
        let sent = table::bytes(traffic.sent_bytes);
        output::line(format!("{repository} has {}: {sent} sent", numbered(order.name.as_str(), new)));
    }
    if *is_running {
        output::remark(format!("{} is running: what this run changes can be sent after its exit", order.name));
    }
}

/// Names generations of a container.
fn numbered(name: &str, seqs: &[Seq]) -> String {
    match seqs {
        [] => name.to_owned(),
        [one] => format!("{name}@{one}"),
        [first, .., last] => format!("{name}@{first} to @{last}"),
    }
}

/// Fetches a container.
///
/// # Errors
/// Where what is there cannot be used, or the container here has another history.
pub fn pull(context: &Context, args: &FetchArgs) -> Result<()> {
    let (remote, name) = match args.name.rsplit_once('/') {
        Some((remote, name)) => (Some(remote.to_owned()), name),
        None => (None, args.name.as_str()),
    };
    if let Some((name, _)) = name.split_once('@') {
        return Err(Failure::new(Code::Usage, "a pull brings a container, not one of its generations").hint(format!(
            "`perennial pull {name}` brings all that are there, `perennial pull --current {name}` the one to start from"
        )));
    }
    let mut order = Order::new(Engine::parse_name(name)?, remote, &args.login)?;
    order.other_name = args.other_name.as_deref().map(Engine::parse_name).transpose()?;
    order.other_name = order.other_name.filter(|other| *other != order.name);
    let plan = PullPlan {
        trust: if args.trust_settings { Trust::Settings } else { Trust::Wary },
        extent: if args.current { Extent::Current } else { Extent::All },
    };
    let bar = TotalBar::new(context.style, "fetching");
    let pulled = context.engine.pull(&order, plan, &bar);
    bar.clear();
    show_pulled(context, plan.extent, &pulled?);
    Ok(())
}

fn show_pulled(context: &Context, extent: Extent, pulled: &Pulled) {
    let Pulled { repository, name, new, left_there, current, is_moved, left_out, traffic } = pulled;
    if context.style == Style::Json {
        output::json(&json!({
            "container": name, "repository": repository, "new": new, "left_there": left_there, "current": current,
            "settings_left_out": left_out, "traffic": traffic_json(*traffic),
        }));
        return;
    }
    if new.is_empty() && !is_moved {
        output::line(format!("{name} has everything new that {repository} has"));
    } else if new.is_empty() {
        let seq = current.map(|seq| seq.to_string()).unwrap_or_default();
        output::line(format!("{name} starts from {name}@{seq} now, as {repository} says"));
    } else {
        let received = table::bytes(traffic.received_bytes);
        output::line(format!("{} came from {repository}: {received} received", numbered(name.as_str(), new)));
    }
    if extent == Extent::All && !left_there.is_empty() {
        let listed: Vec<String> = left_there.iter().map(|seq| format!("{name}@{seq}")).collect();
        output::remark(format!("not kept here, and still there: {}", listed.join(", ")));
        output::remark("`perennial pull NAME NEW-NAME` fetches everything that is there beside it");
    }
    if !left_out.is_empty() {
        output::remark(format!("not taken, since it reaches into this host: {}", left_out.join(", ")));
        output::remark("`perennial pull --trust-settings` takes it, into a container of another name");
    }
}

/// Sends an image.
///
/// # Errors
/// Where it is unknown, cannot be read, or the registry does not take it.
pub fn push_image(context: &Context, args: &ImagePushArgs) -> Result<()> {
    let image = context.engine.image(&context.engine.resolve_image(&args.image)?)?.value;
    let credentials = login_of(&args.login)?;
    let order = PublishOrder { reference: &args.reference, plain_http: args.plain_http, credentials };
    let bar = TotalBar::new(context.style, "sending");
    let published = context.engine.publish_image(&image, &order, &bar);
    bar.clear();
    let Published { repository, tag, digest, report, traffic } = published?;
    if context.style == Style::Json {
        output::json(&json!({
            "image": image.digest, "repository": repository, "tag": tag, "digest": digest,
            "not_said": super::export::report_json(&report),
            "traffic": traffic_json(traffic),
        }));
        return Ok(());
    }
    output::line(format!("{repository}:{tag} is {digest}: {} sent", table::bytes(traffic.sent_bytes)));
    super::export::show_report(&report);
    Ok(())
}

/// Sends what is sent by itself, and goes on trying.
///
/// # Errors
/// Where waiting does not help; nobody reads that, `inspect` shows it.
pub fn send(context: &Context, args: &NameArg) -> Result<()> {
    let id = context.engine.id_of(&Engine::parse_name(&args.name)?)?;
    context.engine.send_by_policy(&id)
}

/// Adds, lists and forgets remotes.
///
/// # Errors
/// Where the name is unknown or taken, or the address is not valid.
pub fn remote(context: &Context, command: &RemoteCommand) -> Result<()> {
    match command {
        RemoteCommand::Add { name, address, plain_http, keys } => {
            let added = context.engine.add_remote(name, address, *plain_http, &key_order(keys)?)?;
            show_remote(context, "added", &added)?;
        }
        RemoteCommand::Set { name, keys } => {
            let order = key_order(keys)?;
            if !order.encrypt && order.identity.is_none() && order.recipients.is_none() {
                return Err(Failure::new(Code::Usage, "nothing is to be changed")
                    .hint("give --encrypt, --identity or --recipient; `perennial remote set --help` explains them"));
            }
            let changed = context.engine.set_remote(name, &order)?;
            show_remote(context, "changed", &changed)?;
        }
        RemoteCommand::Rm { name } => {
            let encryption = context.engine.remove_remote(name)?.encryption;
            match (context.style, encryption) {
                (Style::Json, _) => output::json(&json!({"removed": name})),
                (Style::Text, None) => output::line(format!("{name} is forgotten; what is in the registry stays")),
                (Style::Text, Some(encryption)) => output::line(format!(
                    "{name} is forgotten; what is in the registry stays, and so does the key in {}",
                    encryption.identity
                )),
            }
        }
        RemoteCommand::Ls => {
            let remotes = context.engine.remotes()?;
            if context.style == Style::Json {
                output::json(&json!(remotes));
                return Ok(());
            }
            let mut rows = vec![["NAME", "REGISTRY", "TLS", "KEY"].map(str::to_owned).to_vec()];
            for remote in remotes {
                let is_plain = trust::is_plain(&remote.registry, remote.plain_http, &certificates());
                let tls = if is_plain { "no" } else { "yes" };
                let key = remote.encryption.map_or_else(|| "-".to_owned(), |encryption| encryption.identity);
                rows.push(vec![remote.name, shown(&remote.registry, &remote.prefix), tls.to_owned(), key]);
            }
            output::text(&table::render(&rows));
        }
    }
    Ok(())
}

fn key_order(args: &KeyArgs) -> Result<KeyOrder> {
    let recipients = match args.recipient.as_slice() {
        [] => None,
        [none] if none == "none" => Some(Vec::new()),
        given => {
            let parsed: std::result::Result<_, _> = given.iter().map(|text| text.parse()).collect();
            Some(parsed.map_err(|error: ParseIdError| Failure::new(Code::Usage, error))?)
        }
    };
    Ok(KeyOrder { encrypt: args.encrypt, identity: args.identity.clone(), recipients })
}

fn show_remote(context: &Context, what: &str, Added { remote, key_made }: &Added) -> Result<()> {
    let recipients = recipients_of(remote)?;
    if context.style == Style::Json {
        output::json(&json!({what: remote, "encrypted_for": recipients, "key_made": key_made}));
        return Ok(());
    }
    let place = format!("{} is {}", remote.name, shown(&remote.registry, &remote.prefix));
    let Some(encryption) = &remote.encryption else {
        output::line(place);
        return Ok(());
    };
    let recipients: Vec<&str> = recipients.iter().map(Recipient::as_str).collect();
    output::line(format!("{place}, encrypted for {}", recipients.join(" and ")));
    let made = if key_made.is_some() { ", made now" } else { "" };
    output::line(format!("the key is in {}{made}", encryption.identity));
    if key_made.is_some() {
        output::remark(format!(
            "keep a copy of it on another machine: without it nobody can ever read what is sent to {}",
            remote.name
        ));
    }
    Ok(())
}

fn shown(registry: &str, prefix: &str) -> String {
    if prefix.is_empty() { registry.to_owned() } else { format!("{registry}/{prefix}") }
}
