//! Blobs as objects of a store that speaks S3: `PREFIX/blobs/sha256/ab/abcd…`. An object appears whole by itself; what
//! is large is sent in parts.

use super::{BlobReader, BlobStore, Stamp};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::{
    ClientOptions, Error, GetOptions, GetRange, ObjectStore as _, ObjectStoreExt as _, PutPayload, WriteMultipart,
};
use perennial_core::registry::name::BlobDigest;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;
use tokio::runtime::Handle;

/// Bytes of a part: S3 takes 10,000 parts of at least 5 MiB, which is 80 GB with this.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// Parts that are on their way at once.
const PARTS_AT_ONCE: usize = 4;
/// Longest time to reach the store.
const CONNECT: Duration = Duration::from_secs(10);

/// Where objects are, and with which right.
#[derive(Clone)]
pub struct S3 {
    /// The bucket.
    pub bucket: String,
    /// What stands before each object's name.
    pub prefix: String,
    /// The server, where it is not that of the region.
    pub endpoint: Option<String>,
    /// The region.
    pub region: String,
    /// The key's name.
    pub key_id: String,
    /// The key.
    pub secret: String,
}

impl std::fmt::Debug for S3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the secret.
        f.debug_struct("S3").field("bucket", &self.bucket).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl S3 {
    /// Returns the place as the registry's directory records it.
    pub(crate) fn place(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix)
    }
}

/// Blobs in a bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    store: AmazonS3,
    prefix: Key,
    runtime: Handle,
}

impl Bucket {
    /// Makes a client of the store; nothing is asked of it yet.
    pub(crate) fn new(options: &S3, runtime: Handle) -> io::Result<Self> {
        // Only the first one installed counts, and any will do.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = ClientOptions::new().with_timeout_disabled().with_connect_timeout(CONNECT).with_allow_http(true);
        let mut builder = AmazonS3Builder::new()
            .with_client_options(client)
            .with_bucket_name(&options.bucket)
            .with_region(&options.region)
            .with_access_key_id(&options.key_id)
            .with_secret_access_key(&options.secret);
        if let Some(endpoint) = &options.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let prefix = Key::parse(&options.prefix).map_err(io::Error::other)?;
        Ok(Self { store: builder.build()?, prefix, runtime })
    }

    fn key(&self, directory: &str, digest: &BlobDigest) -> Key {
        let path = digest.path();
        let parts = self.prefix.parts().map(|part| part.as_ref().to_owned());
        let own = [directory.to_owned()].into_iter().chain(path.split('/').map(str::to_owned));
        Key::from_iter(parts.chain(own))
    }

    async fn send(&self, staged: &Path, key: &Key) -> io::Result<()> {
        let mut file = File::open(staged)?;
        if file.metadata()?.len() <= u64::try_from(PART_BYTES).unwrap_or(u64::MAX) {
            let mut content = Vec::new();
            file.read_to_end(&mut content)?;
            self.store.put(key, PutPayload::from(content)).await?;
            return Ok(());
        }
        let mut upload = WriteMultipart::new_with_chunk_size(self.store.put_multipart(key).await?, PART_BYTES);
        let sent = send_parts(&mut file, &mut upload).await;
        match sent {
            Ok(()) => upload.finish().await.map(drop).map_err(io::Error::from),
            Err(error) => {
                // Parts that stay behind cost space only; the error matters more than this one.
                upload.abort().await.ok();
                Err(error)
            }
        }
    }
}

async fn send_parts(file: &mut File, upload: &mut WriteMultipart) -> io::Result<()> {
    loop {
        let mut part = Vec::with_capacity(PART_BYTES);
        let count = file.by_ref().take(u64::try_from(PART_BYTES).unwrap_or(u64::MAX)).read_to_end(&mut part)?;
        if count == 0 {
            return Ok(());
        }
        upload.wait_for_capacity(PARTS_AT_ONCE).await?;
        upload.put(Bytes::from(part));
    }
}

/// Takes what is not there for nothing.
fn found<T>(result: Result<T, Error>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl BlobStore for Bucket {
    fn publish(&self, staged: &Path, digest: &BlobDigest) -> io::Result<()> {
        self.runtime.block_on(self.send(staged, &self.key("blobs", digest)))?;
        std::fs::remove_file(staged)
    }

    fn open(&self, digest: &BlobDigest) -> io::Result<Option<Box<dyn BlobReader>>> {
        let key = self.key("blobs", digest);
        let Some(meta) = found(self.runtime.block_on(self.store.head(&key)))? else { return Ok(None) };
        let tag = format!("{} {}", meta.e_tag.unwrap_or_default(), meta.last_modified);
        let stamp = Stamp { bytes: meta.size, tag };
        let (store, runtime) = (self.store.clone(), self.runtime.clone());
        Ok(Some(Box::new(ObjectReader { store, runtime, key, stamp, stream: None, at: 0, left_over: Bytes::new() })))
    }

    fn delete(&self, digest: &BlobDigest) -> io::Result<()> {
        found(self.runtime.block_on(self.store.delete(&self.key("blobs", digest)))).map(drop)
    }

    fn quarantine(&self, digest: &BlobDigest) -> io::Result<()> {
        let (from, to) = (self.key("blobs", digest), self.key("quarantine", digest));
        if found(self.runtime.block_on(self.store.copy(&from, &to)))?.is_some() {
            self.runtime.block_on(self.store.delete(&from))?;
        }
        Ok(())
    }

    fn list(&self, each: &mut dyn FnMut(BlobDigest)) -> io::Result<()> {
        let below =
            Key::from_iter(self.prefix.parts().map(|part| part.as_ref().to_owned()).chain(["blobs".to_owned()]));
        let mut objects = self.store.list(Some(&below));
        while let Some(object) = self.runtime.block_on(objects.next()) {
            let key = object?.location;
            let parts: Vec<_> = key.parts().collect();
            if let [.., algorithm, _, hex] = parts.as_slice()
                && let Ok(digest) = BlobDigest::parse(&format!("{}:{}", algorithm.as_ref(), hex.as_ref()))
            {
                each(digest);
            }
        }
        Ok(())
    }
}

/// An object that is read from its front to its end in one request, as long as nobody asks for another part.
struct ObjectReader {
    store: AmazonS3,
    runtime: Handle,
    key: Key,
    stamp: Stamp,
    stream: Option<BoxStream<'static, Result<Bytes, Error>>>,
    /// Where the stream stands, without what is left over.
    at: u64,
    left_over: Bytes,
}

impl std::fmt::Debug for ObjectReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectReader").field("key", &self.key).field("at", &self.at).finish_non_exhaustive()
    }
}

impl BlobReader for ObjectReader {
    fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let length = u64::try_from(buffer.len()).map_err(io::Error::other)?;
        if offset.checked_add(length).is_none_or(|end| end > self.stamp.bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let runtime = self.runtime.clone();
        runtime.block_on(self.read(offset, buffer))
    }
}

impl ObjectReader {
    async fn read(&mut self, offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        if !buffer.is_empty() && (self.stream.is_none() || self.at != offset) {
            let options = GetOptions { range: Some(GetRange::Offset(offset)), ..GetOptions::default() };
            self.stream = Some(self.store.get_opts(&self.key, options).await?.into_stream());
            (self.at, self.left_over) = (offset, Bytes::new());
        }
        while !buffer.is_empty() {
            if self.left_over.is_empty() {
                let next = match &mut self.stream {
                    Some(stream) => stream.next().await,
                    None => None,
                };
                self.left_over = next.ok_or(io::ErrorKind::UnexpectedEof)??;
            }
            let part = self.left_over.split_to(self.left_over.len().min(buffer.len()));
            let (filled, rest) = buffer.split_at_mut(part.len());
            filled.copy_from_slice(&part);
            buffer = rest;
            self.at = self.at.saturating_add(u64::try_from(part.len()).unwrap_or(0));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    struct Server(Child);

    impl Drop for Server {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    #[test]
    fn a_bucket_keeps_the_contract_of_a_store() {
        let place = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("s3rver");
        command.args(["--address", "127.0.0.1", "--port", &port.to_string(), "--configure-bucket", "garden"]);
        command.arg("--directory").arg(place.path().join("objects"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let _server = Server(child.expect("s3rver (npm package s3rver; `./setup --test` installs it)"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let options = S3 {
            bucket: "garden".into(),
            prefix: "a/b".into(),
            endpoint: Some(format!("http://127.0.0.1:{port}")),
            region: "us-east-1".into(),
            key_id: "S3RVER".into(),
            secret: "S3RVER".into(),
        };
        // The client tries again until the server is there.
        let bucket = Bucket::new(&options, runtime.handle().clone()).unwrap();
        super::super::conformance(&bucket, place.path());
        let other = S3 { prefix: String::new(), ..options };
        let other = Bucket::new(&other, runtime.handle().clone()).unwrap();
        let mut count = 0;
        other.list(&mut |_| count += 1).unwrap();
        assert_eq!(count, 0, "another prefix is another store");
    }
}
