//! Connections: how many, how patient with each, and how they end.

use super::app::{App, answer};
use super::log::{Level, Log};
use super::trouble::Trouble;
use super::{ServeError, Tls};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use perennial_core::registry::bounds::{Pace, connections_that_fit, files_needed};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use std::convert::Infallible;
use std::future::Future as _;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;

/// Bytes that wait in a connection: what a slow client costs, times the number of connections.
const BUFFER_BYTES: usize = 32 * 1024;
/// Longest time for the head of a request, and for a TLS handshake.
const HEAD: Duration = Duration::from_secs(30);
/// How long to wait after a connection could not be taken, such as when there are too many files.
const PAUSE: Duration = Duration::from_millis(100);

/// Reads the certificate and its key.
pub(crate) fn acceptor(tls: &Tls) -> Result<TlsAcceptor, ServeError> {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let failed = |path: &std::path::Path, reason: String| ServeError::Tls { path: path.to_path_buf(), reason };
    let certificates = CertificateDer::pem_file_iter(&tls.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(&tls.certificate, error.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| failed(&tls.key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(certificates, key))
        .map_err(|error| failed(&tls.certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Lets this process have the files that its connections need; returns how many connections that is enough for.
pub(crate) fn connections(asked: usize, log: &Log) -> usize {
    let needed = files_needed(asked);
    let present = getrlimit(Resource::Nofile);
    let most = present.maximum.unwrap_or(u64::MAX);
    let mut files = present.current.unwrap_or(u64::MAX);
    if files < needed {
        let wanted = Rlimit { current: Some(needed.min(most)), maximum: present.maximum };
        // What is not granted is told below.
        if setrlimit(Resource::Nofile, wanted).is_ok() {
            files = needed.min(most);
        }
    }
    let fit = connections_that_fit(asked, files);
    if fit < asked {
        let fields = vec![("asked", json!(asked)), ("connections", json!(fit)), ("files", json!(files))];
        log.line(Level::Warning, "connections_fewer", fields);
    }
    fit
}

/// Takes connections until `ending`, then lets those finish that are open.
pub(crate) async fn accept(
    app: &Arc<App>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    ending: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(app.options.connections_max));
    let mut end = ending.clone();
    let mut is_failing = false;
    loop {
        let taken = async {
            // The semaphore is never closed.
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, taken) = tokio::select! {
            _ = end.wait_for(|is_ending| *is_ending) => break,
            taken = taken => taken,
        };
        let (stream, from) = match taken {
            Ok(accepted) => accepted,
            Err(error) => {
                // Once, not ten times a second for as long as it lasts.
                if !is_failing {
                    app.trouble("accept_failed", "connection", &Trouble::io("cannot take a connection")(error));
                }
                is_failing = true;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        is_failing = false;
        let (app, tls, ending) = (Arc::clone(app), tls.clone(), ending.clone());
        app.metrics.connections.inc();
        tokio::spawn(async move {
            serve(&app, (stream, from.ip()), tls, ending).await;
            app.metrics.connections.dec();
            drop(slot);
        });
    }
    drop(listener);
    let all = u32::try_from(app.options.connections_max).unwrap_or(u32::MAX);
    // All slots are free when all connections have ended.
    if tokio::time::timeout(app.options.grace_of_end, slots.acquire_many(all)).await.is_err() {
        app.options.log.line(Level::Warning, "connections_cut", vec![("open", json!(app.metrics.connections.get()))]);
    }
}

async fn serve(
    app: &Arc<App>,
    (stream, from): (TcpStream, IpAddr),
    tls: Option<TlsAcceptor>,
    ending: watch::Receiver<bool>,
) {
    stream.set_nodelay(true).ok();
    let stream = Patient::new(stream, app.options.patience);
    match tls {
        None => talk(app, (stream, from), ending).await,
        Some(acceptor) => {
            if let Ok(Ok(stream)) = tokio::time::timeout(HEAD, acceptor.accept(stream)).await {
                talk(app, (stream, from), ending).await;
            }
        }
    }
}

async fn talk(
    app: &Arc<App>,
    (stream, from): (impl AsyncRead + AsyncWrite + Unpin, IpAddr),
    mut ending: watch::Receiver<bool>,
) {
    let app = Arc::clone(app);
    let service = service_fn(move |request| {
        let app = Arc::clone(&app);
        async move { Ok::<_, Infallible>(answer(app, request, from).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // How a connection ends is told by the requests on it.
        _ = connection.as_mut() => return,
        _ = ending.wait_for(|is_ending| *is_ending) => connection.as_mut().graceful_shutdown(),
    }
    connection.await.ok();
}

/// Returns the pace of a client that is waited for with this patience.
pub(crate) fn pace_of(patience: Duration) -> Pace {
    Pace::new(nanos_of(patience))
}

/// Returns a time as the core counts it.
pub(crate) fn nanos_of(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A stream that ends when it cannot send anything for too long, or too slowly. (Reading is timed where a body is read.)
#[derive(Debug)]
struct Patient<S> {
    stream: S,
    patience: Duration,
    until: Pin<Box<Sleep>>,
    waits_since: Option<Instant>,
    pace: Pace,
}

impl<S> Patient<S> {
    fn new(stream: S, patience: Duration) -> Self {
        let until = Box::pin(tokio::time::sleep(patience));
        Self { stream, patience, until, waits_since: None, pace: pace_of(patience) }
    }

    /// Times what waits.
    fn watch(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = polled {
            let waited = self.waits_since.take().map_or(0, |since| nanos_of(since.elapsed()));
            let bytes = u64::try_from(*written.as_ref().unwrap_or(&0)).unwrap_or(u64::MAX);
            let is_kept = self.pace.is_kept(bytes, waited);
            return Poll::Ready(if is_kept { written } else { Err(io::ErrorKind::TimedOut.into()) });
        }
        if self.waits_since.is_none() {
            let now = Instant::now();
            self.waits_since = Some(now);
            self.until.as_mut().reset(now + self.patience);
        }
        match self.until.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// Sends 20,000 bytes to a client that takes so many of them each 10 ms.
    async fn send(taken: usize) -> io::Result<()> {
        let (ours, mut theirs) = tokio::io::duplex(512);
        let taking = tokio::spawn(async move {
            let mut buffer = vec![0; taken];
            while theirs.read_exact(&mut buffer).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let sent = Patient::new(ours, Duration::from_millis(300)).write_all(&[0; 20_000]).await;
        taking.abort();
        sent
    }

    #[tokio::test]
    async fn a_client_that_takes_a_little_now_and_then_is_let_go_of() {
        assert_eq!(send(1).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        send(500).await.unwrap();
    }
}
