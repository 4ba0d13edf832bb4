//! What there is: tags and referrers.

use super::app::{App, Call, blocking};
use super::reply::{self, Reply};
use super::trouble::Trouble;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, LINK};
use perennial_core::registry::manifest::{INDEX, referrers_page};
use perennial_core::registry::name::{BlobDigest, Repository};
use perennial_core::registry::page::Page;
use perennial_core::registry::query::encode;
use serde_json::json;
use std::sync::Arc;

/// Answers `GET /v2/<name>/tags/list`.
pub(crate) async fn tags(app: &Arc<App>, call: &Call, name: Repository) -> Result<Reply, Trouble> {
    let page = Page::parse(&call.query)?;
    let (worker, of, asked) = (Arc::clone(app), name.clone(), page.clone());
    let (tags, has_more) = blocking(move || worker.meta.tags(&of, &asked)).await?;
    let reply = reply::json(StatusCode::OK, json!({"name": name.as_str(), "tags": tags}).to_string());
    Ok(match tags.last().filter(|_| has_more) {
        Some(last) => reply::with(reply, LINK, page.next(&name, last)),
        None => reply,
    })
}

/// Answers `GET /v2/<name>/referrers/<digest>`.
pub(crate) async fn referrers(
    app: &Arc<App>,
    call: &Call,
    name: Repository,
    subject: BlobDigest,
) -> Result<Reply, Trouble> {
    let kind = call.query.get("artifactType").map(str::to_owned);
    let after = call.query.get("last").unwrap_or_default().to_owned();
    let (worker, of, about, filter) = (Arc::clone(app), name.clone(), subject.clone(), kind.clone());
    let all = blocking(move || worker.meta.referrers(&of, &about, filter.as_deref(), &after)).await?;
    let (index, more_after) = referrers_page(&all);
    let mut reply = reply::with(reply::text(StatusCode::OK, index), CONTENT_TYPE, INDEX);
    if kind.is_some() {
        reply = reply::with_own(reply, "oci-filters-applied", "artifactType");
    }
    if let Some(last) = more_after {
        let filter = kind.map_or_else(String::new, |kind| format!("&artifactType={}", encode(&kind)));
        let next = format!("</v2/{name}/referrers/{subject}?last={}{filter}>; rel=\"next\"", encode(last));
        reply = reply::with(reply, LINK, next);
    }
    Ok(reply)
}
