//! Answers: what every handler returns, and what the specification says goes into them.

use super::body::BlobBody;
use super::trouble::Trouble;
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use perennial_core::registry::fault::Fault;

/// The body of an answer.
pub(crate) type ReplyBody = Either<Full<Bytes>, BlobBody>;
/// An answer.
pub(crate) type Reply = Response<ReplyBody>;

/// Seconds after which a client may ask again where the registry is full or broken.
const RETRY_S: &str = "5";

/// Returns an answer without a body.
pub(crate) fn empty(status: StatusCode) -> Reply {
    text(status, Bytes::new())
}

/// Returns an answer with this body.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Either::Left(Full::new(body.into())));
    *reply.status_mut() = status;
    reply
}

/// Returns an answer of JSON.
pub(crate) fn json(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    with(text(status, body), CONTENT_TYPE, "application/json")
}

/// Adds a header. A value that no header can have is left out: those here are made of checked names and numbers.
pub(crate) fn with(mut reply: Reply, name: HeaderName, value: impl AsRef<str>) -> Reply {
    if let Ok(value) = HeaderValue::from_str(value.as_ref()) {
        reply.headers_mut().append(name, value);
    }
    reply
}

/// Adds a header that the specification names.
pub(crate) fn with_own(reply: Reply, name: &'static str, value: impl AsRef<str>) -> Reply {
    with(reply, HeaderName::from_static(name), value)
}

/// Adds the length of a body that is not sent, or streamed.
pub(crate) fn with_length(reply: Reply, bytes: u64) -> Reply {
    with(reply, CONTENT_LENGTH, bytes.to_string())
}

/// Returns the answer to a request that failed.
pub(crate) fn failed(trouble: &Trouble) -> Reply {
    match trouble {
        Trouble::Fault(fault) => refused(fault),
        Trouble::Busy => unavailable("the registry is busy"),
        Trouble::Ending => unavailable("the registry is ending"),
        Trouble::Broken(_) => json(StatusCode::BAD_REQUEST, unknown_body("the request was cut off")),
        Trouble::Record(_) | Trouble::Damaged(_) | Trouble::Io { .. } => {
            if trouble.is_full() {
                return json(StatusCode::INSUFFICIENT_STORAGE, unknown_body("there is no space left"));
            }
            json(StatusCode::INTERNAL_SERVER_ERROR, unknown_body("the registry failed; its log says why"))
        }
    }
}

/// Returns the answer to a request that is refused.
pub(crate) fn refused(fault: &Fault) -> Reply {
    let status = StatusCode::from_u16(fault.status).unwrap_or(StatusCode::BAD_REQUEST);
    let reply = json(status, fault.body());
    if status == StatusCode::TOO_MANY_REQUESTS { with(reply, RETRY_AFTER, RETRY_S) } else { reply }
}

fn unavailable(why: &str) -> Reply {
    with(json(StatusCode::SERVICE_UNAVAILABLE, unknown_body(why)), RETRY_AFTER, RETRY_S)
}

/// The specification has codes for what clients do wrong; what the server does wrong has none.
fn unknown_body(message: &str) -> String {
    serde_json::json!({"errors": [{"code": "UNKNOWN", "message": message}]}).to_string()
}
