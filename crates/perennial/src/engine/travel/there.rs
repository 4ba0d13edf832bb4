//! What a push finds at a remote: a record or what is left of it, and its packs, of which some may be gone.

use super::Order;
use super::draft::Draft;
use super::image::{Lack, take_absent};
use super::link::{Found, Look, Lost};
use super::load::Load;
use crate::failure::{Code, Failure, Result};
use perennial_core::id::{ContainerName, Digest, Seq};
use perennial_core::travel::remote::{Loss, Tracking};
use perennial_core::travel::send::Standing;
use perennial_core::travel::{Contents, PackAt};
use perennial_registry::repository::{Repository, Tagged};

/// The packs that are there, and what is known of them.
pub(super) struct There {
    pub(super) packs: Vec<PackAt>,
    pub(super) standing: Standing,
    pub(super) lack: Lack,
}

/// What a push finds.
pub(super) struct Seen {
    pub(super) found: Option<Found>,
    /// A manifest whose parcel is lost, and which is to be replaced.
    pub(super) lost: Option<Tagged>,
    pub(super) loss: Loss,
}

/// Refuses to go on where a record is lost, unless everything is to be sent again; says what is lost with it.
pub(super) fn see(
    (repository, looked): (&Repository, Look),
    order: &Order,
    load: &Load,
    tracking: &Tracking,
) -> Result<Seen> {
    let known = if order.other_name.is_some() { &Tracking::default() } else { tracking };
    let queue = load.container.queue.as_ref();
    let loss = |manifest: &Digest| known.loss(queue, manifest, load.container.policy.keep);
    Ok(match looked {
        Look::Nothing => {
            // Somebody may have removed it, or the registry may be another one.
            let loss = known.manifest.as_ref().map(loss).unwrap_or_default();
            Seen { found: None, lost: None, loss }
        }
        Look::Found(found) => Seen { found: Some(*found), lost: None, loss: Loss::default() },
        Look::Lost(lost) => {
            let loss = loss(&lost.tagged.digest);
            if !order.is_whole {
                return Err(unreadable(lost, repository, order, &loss));
            }
            Seen { found: None, lost: Some(lost.tagged), loss }
        }
    })
}

fn unreadable(lost: Lost, repository: &Repository, order: &Order, loss: &Loss) -> Failure {
    let name = &order.name;
    let gone = match (loss.generations.as_slice(), loss.is_unseen) {
        ([], false) => "everything that was there is here, too".to_owned(),
        ([], true) => "what others have sent since this machine last looked is lost, unless they have it".to_owned(),
        (seqs, is_unseen) => {
            let since = if is_unseen { ", and what others have sent since," } else { "" };
            format!("{} was not brought here{since} and is lost, unless others have it", numbered(name, seqs))
        }
    };
    lost.failure(repository).hint(format!(
        "nothing was changed; `perennial push --whole {name}` sends everything that is here again; {gone}"
    ))
}

/// Names generations of a container.
fn numbered(name: &ContainerName, seqs: &[Seq]) -> String {
    seqs.iter().map(|seq| format!("{name}@{seq}")).collect::<Vec<_>>().join(", ")
}

/// Looks at the packs that are there: those that are gone are named no more.
pub(super) fn standing(
    repository: &Repository,
    found: Option<&mut Found>,
    draft: &Draft,
    order: &Order,
) -> Result<(Standing, Lack)> {
    let has_theirs = !draft.only_there.is_empty();
    let mut standing = Standing { loses_base: false, has_theirs, is_whole: order.is_whole };
    let Some(found) = found else { return Ok((standing, Lack::Nothing)) };
    let lack = take_absent(repository, &mut found.parcel)?;
    if lack != Lack::Nothing && has_theirs {
        let name = &order.name;
        let message = format!(
            "{} has lost contents, and {}, which is only there, may need them",
            repository.name(),
            numbered(name, &draft.only_there)
        );
        return Err(Failure::new(Code::Damaged, message).hint(format!(
            "`perennial push {name}` on the machine that has it sends it again; `perennial push --whole {name}` gives it \
             up, and sends what is here"
        )));
    }
    if let Contents::Container { images, .. } = &found.parcel.contents {
        standing.loses_base =
            lack != Lack::Nothing || images.iter().any(|at| !draft.images.iter().any(|now| now.image == at.image));
    }
    Ok((standing, lack))
}
