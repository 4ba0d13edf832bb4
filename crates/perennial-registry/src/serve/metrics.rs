//! What is counted, for Prometheus.

use super::app::{App, blocking, load};
use super::reply::{self, Reply};
use super::trouble::Trouble;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, StatusCode};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::Duration;

/// The counters.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Vec<(&'static str, String)>, Counter>,
    took: Histogram,
    /// Bytes of blobs that were to be sent.
    pub(crate) sent: Counter,
    /// Bytes of blobs that came.
    pub(crate) received: Counter,
    /// Blobs that were found damaged.
    pub(crate) damaged: Counter,
    /// Requests and chores that failed through no fault of a client.
    pub(crate) troubles: Counter,
    /// Bytes that the scrub has read.
    pub(crate) scrubbed: Counter,
    /// Blobs that collection has freed.
    pub(crate) freed: Counter,
    blobs: Gauge,
    bytes: Gauge,
    quarantined: Gauge,
    unreadable: Gauge,
    streams: Gauge,
    /// Connections that are open.
    pub(crate) connections: Gauge,
}

impl Metrics {
    /// Makes counters that stand at zero.
    pub(crate) fn new() -> Self {
        // From 1 ms to about half a minute.
        let buckets = exponential_buckets(0.001, 4.0, 8);
        let mut all = Self {
            registry: Registry::with_prefix("perennial_registry"),
            requests: Family::default(),
            took: Histogram::new(buckets),
            sent: Counter::default(),
            received: Counter::default(),
            damaged: Counter::default(),
            troubles: Counter::default(),
            scrubbed: Counter::default(),
            freed: Counter::default(),
            blobs: Gauge::default(),
            bytes: Gauge::default(),
            quarantined: Gauge::default(),
            unreadable: Gauge::default(),
            streams: Gauge::default(),
            connections: Gauge::default(),
        };
        let to = &mut all.registry;
        to.register("requests", "Requests by method and status", all.requests.clone());
        to.register("request_seconds", "Time until the head of the answer", all.took.clone());
        to.register("blob_sent_bytes", "Bytes of blobs that were to be sent", all.sent.clone());
        to.register("blob_received_bytes", "Bytes of blobs that came", all.received.clone());
        to.register("blobs_found_damaged", "Blobs that were found damaged", all.damaged.clone());
        to.register("troubles", "What failed through no fault of a client", all.troubles.clone());
        to.register("scrubbed_bytes", "Bytes that the scrub has read", all.scrubbed.clone());
        to.register("blobs_freed", "Blobs that collection has freed", all.freed.clone());
        to.register("blobs", "Blobs that are kept", all.blobs.clone());
        to.register("blob_bytes", "Their bytes", all.bytes.clone());
        to.register("blobs_quarantined", "Blobs that are damaged and not served", all.quarantined.clone());
        to.register("blobs_unreadable", "Blobs that the disk did not give when last read", all.unreadable.clone());
        to.register("streams", "Blobs that are being sent", all.streams.clone());
        to.register("connections", "Connections that are open", all.connections.clone());
        all
    }

    /// Counts an answer.
    pub(crate) fn answered(&self, method: &Method, status: u16, took: Duration) {
        let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
        // Names that clients invent would each be a series of their own.
        let method = if known.contains(&method.as_str()) { method.as_str() } else { "other" };
        let labels = vec![("method", method.to_owned()), ("status", status.to_string())];
        self.requests.get_or_create(&labels).inc();
        self.took.observe(took.as_secs_f64());
    }
}

/// Answers `GET /metrics`.
pub(crate) async fn page(app: &Arc<App>) -> Result<Reply, Trouble> {
    let worker = Arc::clone(app);
    let (blobs, bytes, damaged) = blocking(move || worker.meta.totals()).await?;
    let metrics = &app.metrics;
    let unreadable = u64::try_from(app.verdicts.unreadable().len()).unwrap_or(u64::MAX);
    for (gauge, value) in [
        (&metrics.blobs, blobs),
        (&metrics.bytes, bytes),
        (&metrics.quarantined, damaged),
        (&metrics.unreadable, unreadable),
        (&metrics.streams, load(&app.streams)),
    ] {
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    }
    let mut text = String::new();
    encode(&mut text, &metrics.registry).map_err(|error| Trouble::Damaged(error.to_string()))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(reply::with(reply::text(StatusCode::OK, text), CONTENT_TYPE, kind))
}
