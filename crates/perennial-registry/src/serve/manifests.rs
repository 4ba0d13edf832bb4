//! Manifests: `/v2/<name>/manifests/<reference>`.

use super::app::{App, Call, blocking};
use super::meta::NewManifest;
use super::reply::{self, Reply};
use super::trouble::Trouble;
use super::uploads::digest_of;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, LOCATION};
use hyper::{Method, StatusCode};
use perennial_core::registry::fault::{Code, Fault};
use perennial_core::registry::manifest::{MANIFEST_BYTES_MAX, read};
use perennial_core::registry::name::{Algorithm, BlobDigest, Reference, Repository, Tag};
use perennial_core::registry::precondition::{Precondition, entity_tag};
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// Most tags that one push by digest may set.
const TAGS_MAX: usize = 100;

fn precondition(call: &Call) -> Precondition {
    Precondition::new(call.list(&IF_MATCH).as_deref(), call.list(&IF_NONE_MATCH).as_deref())
}

/// Answers `GET` and `HEAD`.
pub(crate) async fn get(app: &Arc<App>, call: &Call, name: Repository, reference: Reference) -> Result<Reply, Trouble> {
    let worker = Arc::clone(app);
    let manifest = blocking(move || worker.meta.manifest(&name, &reference)).await?;
    let digest = &manifest.digest;
    let bytes = manifest.content.len();
    let status = if Precondition::new(None, call.list(&IF_NONE_MATCH).as_deref()).is_unchanged(Some(digest)) {
        StatusCode::NOT_MODIFIED
    } else {
        // Checked each time: it is small, and what the record holds could be damaged too.
        let found = digest_of(digest.algorithm(), &manifest.content);
        if found != *digest {
            return Err(Trouble::Damaged(format!("manifest {digest} has the digest {found}")));
        }
        StatusCode::OK
    };
    let is_sent = status == StatusCode::OK && call.parts.method != Method::HEAD;
    let mut reply = reply::text(status, if is_sent { manifest.content } else { Vec::new() });
    if status == StatusCode::OK {
        reply = reply::with(reply, CONTENT_TYPE, &manifest.media_type);
        reply = reply::with(reply, CONTENT_LENGTH, bytes.to_string());
    }
    reply = reply::with(reply, ETAG, entity_tag(digest));
    Ok(reply::with_own(reply, "docker-content-digest", digest.as_str()))
}

/// Answers `PUT`.
pub(crate) async fn put(
    app: &Arc<App>,
    call: &Call,
    (name, reference): (Repository, Reference),
    body: &mut Incoming,
) -> Result<Reply, Trouble> {
    // Held until it is written.
    let (content, _right) = content(app, call, body).await?;
    let algorithm = match &reference {
        Reference::Digest(digest) => digest.algorithm(),
        Reference::Tag(_) => match call.query.get("digest") {
            Some(digest) => BlobDigest::parse(digest)?.algorithm(),
            None => Algorithm::Sha256,
        },
    };
    let digest = digest_of(algorithm, &content);
    let told = match &reference {
        Reference::Digest(told) => Some(told.clone()),
        Reference::Tag(_) => call.query.get("digest").map(BlobDigest::parse).transpose()?,
    };
    if told.is_some_and(|told| told != digest) {
        return Err(Fault::new(Code::DigestInvalid, format!("the manifest has the digest {digest}")).into());
    }
    let tags = tags(call, &reference)?;
    let facts = read(&content, call.header(&CONTENT_TYPE), digest.clone())?;
    let subject = facts.subject.clone();
    let own = call.query.all("tag").next().is_some();
    let is_sparse = app.options.takes_sparse;
    let manifest =
        NewManifest { is_sparse, facts, content, tags: tags.clone(), precondition: precondition(call), reference };
    let (worker, of) = (Arc::clone(app), name.clone());
    blocking(move || worker.meta.put_manifest(&of, manifest, worker.options.quota, worker.now())).await?;
    let mut reply = reply::empty(StatusCode::CREATED);
    reply = reply::with(reply, LOCATION, format!("/v2/{name}/manifests/{digest}"));
    reply = reply::with(reply, ETAG, entity_tag(&digest));
    if let Some(subject) = subject {
        reply = reply::with_own(reply, "oci-subject", subject.as_str());
    }
    for tag in tags.iter().filter(|_| own) {
        reply = reply::with_own(reply, "oci-tag", tag.as_str());
    }
    Ok(reply::with_own(reply, "docker-content-digest", digest.as_str()))
}

fn tags(call: &Call, reference: &Reference) -> Result<Vec<Tag>, Fault> {
    let invalid = |text: &str| Fault::new(Code::ManifestInvalid, format!("{text:?} is no tag"));
    let asked = call.query.all("tag").map(|text| Tag::parse(text).ok_or_else(|| invalid(text)));
    let mut tags: Vec<Tag> = asked.collect::<Result<_, _>>()?;
    if tags.len() > TAGS_MAX {
        return Err(Fault::new(Code::ManifestInvalid, format!("more than {TAGS_MAX} tags")).with_status(414));
    }
    if let Reference::Tag(tag) = reference {
        tags.push(tag.clone());
    }
    Ok(tags)
}

async fn content(app: &App, call: &Call, body: &mut Incoming) -> Result<(Vec<u8>, OwnedSemaphorePermit), Trouble> {
    let too_large = || {
        let message = format!("a manifest may have {MANIFEST_BYTES_MAX} bytes");
        Trouble::from(Fault::new(Code::ManifestInvalid, message).with_status(413))
    };
    let length = call.length()?;
    if length.is_some_and(|length| length > MANIFEST_BYTES_MAX) {
        return Err(too_large());
    }
    let right = app.taking_manifest(length).await?;
    let max = usize::try_from(MANIFEST_BYTES_MAX).unwrap_or(usize::MAX);
    let collected = tokio::time::timeout(app.options.patience, Limited::new(body, max).collect());
    match collected.await {
        Err(_) => Err(Trouble::Broken("the manifest did not come in time".into())),
        Ok(Ok(collected)) => Ok((collected.to_bytes().into(), right)),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(Trouble::Broken(error.to_string())),
    }
}

/// Answers `DELETE`.
pub(crate) async fn delete(
    app: &Arc<App>,
    call: &Call,
    name: Repository,
    reference: Reference,
) -> Result<Reply, Trouble> {
    let (app, precondition) = (Arc::clone(app), precondition(call));
    blocking(move || app.meta.delete_manifest(&name, &reference, precondition)).await?;
    Ok(reply::empty(StatusCode::ACCEPTED))
}
