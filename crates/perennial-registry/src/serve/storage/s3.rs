//! Blobs as objects of a store that speaks S3: `PREFIX/blobs/sha256/ab/abcd…`. An object appears whole by itself; what
//! is large is sent in parts.

use super::{BlobReader, BlobStore, Claimed, Stamp};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path as Key;
use object_store::{
    ClientOptions, Error, GetOptions, GetRange, MultipartId, ObjectStore as _, ObjectStoreExt as _, PutMode,
    PutPayload, RetryConfig,
};
use perennial_core::format::{Format, decode, encode};
use perennial_core::registry::bounds::{PART_BYTES, part_bytes};
use perennial_core::registry::claim::{Claim, Guard, Put, claim, guard};
use perennial_core::registry::name::BlobDigest;
use perennial_core::registry::upload::{PartsRecord, StorageRecord};
use perennial_core::time::Time;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::runtime::Handle;

/// Bytes of parts that are on their way at once, for one object.
const PARTS_BYTES_AT_ONCE: u64 = 32 * 1024 * 1024;
/// Longest time to reach the store.
const CONNECT: Duration = Duration::from_secs(10);
/// The object that says whose the others are.
const CLAIM: &str = "registry.json";

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
    /// How long the store may say nothing.
    pub patience: Duration,
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
    /// Where it is noted what is being sent in parts.
    notes: PathBuf,
    runtime: Handle,
}

impl Bucket {
    /// Makes a client of the store, for the registry whose directory is `storage`; nothing is asked of it yet.
    pub(crate) fn new(options: &S3, storage: &Path, runtime: Handle) -> io::Result<Self> {
        let notes = storage.join("parts");
        std::fs::create_dir_all(&notes)?;
        // Only the first one installed counts, and any will do.
        drop(rustls::crypto::ring::default_provider().install_default());
        // No bound on the whole of a request, as a blob may be large.
        let client = ClientOptions::new().with_timeout_disabled().with_read_timeout(options.patience);
        let client = client.with_connect_timeout(CONNECT).with_allow_http(true);
        let retry = RetryConfig { retry_timeout: options.patience, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::new()
            .with_client_options(client)
            .with_retry(retry)
            .with_bucket_name(&options.bucket)
            .with_region(&options.region)
            .with_access_key_id(&options.key_id)
            .with_secret_access_key(&options.secret);
        if let Some(endpoint) = &options.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let prefix = Key::parse(&options.prefix).map_err(io::Error::other)?;
        Ok(Self { store: builder.build()?, prefix, notes, runtime })
    }

    fn key(&self, directory: &str, digest: &BlobDigest) -> Key {
        let path = digest.path();
        let parts = self.prefix.parts().map(|part| part.as_ref().to_owned());
        let own = [directory.to_owned()].into_iter().chain(path.split('/').map(str::to_owned));
        Key::from_iter(parts.chain(own))
    }

    fn below(&self, name: &str) -> Key {
        Key::from_iter(self.prefix.parts().map(|part| part.as_ref().to_owned()).chain([name.to_owned()]))
    }

    async fn claimed(&self, registry: &StorageRecord, is_new: bool) -> io::Result<Claimed> {
        let owner = self.owner().await?;
        // A registry of before has laid no claim; its record is not empty.
        let has_strays = owner.is_none()
            && is_new
            && self.store.list(Some(&self.below("blobs"))).next().await.transpose()?.is_some();
        let decided = |owner: Option<StorageRecord>, has_strays| {
            claim(owner.as_ref().map(|owner| owner.id.as_deref()), registry.id.as_deref(), has_strays)
        };
        match decided(owner, has_strays) {
            Claim::Use => return Ok(Claimed::Ours(Guard::Store)),
            Claim::Refuse(why) => return Ok(Claimed::Refused(why)),
            Claim::Lay => {}
        }
        let first = self.lay(registry).await?;
        let again = if first == Put::Made { Some(self.lay(registry).await?) } else { None };
        if first == Put::Refused && self.owner().await?.is_none() {
            self.store.put(&self.below(CLAIM), PutPayload::from(encode(Format::Registry, registry))).await?;
        }
        Ok(match decided(self.owner().await?, false) {
            Claim::Use => Claimed::Ours(guard(first, again)),
            Claim::Refuse(why) => Claimed::Refused(why),
            Claim::Lay => Claimed::Refused("the claim to it was taken away: begin again"),
        })
    }

    /// Returns whose claim is there.
    async fn owner(&self) -> io::Result<Option<StorageRecord>> {
        let Some(object) = found(self.store.get(&self.below(CLAIM)).await)? else { return Ok(None) };
        decode(Format::Registry, &object.bytes().await?).map(Some).map_err(io::Error::other)
    }

    /// Puts a claim where there shall be none.
    async fn lay(&self, registry: &StorageRecord) -> io::Result<Put> {
        let content = PutPayload::from(encode(Format::Registry, registry));
        match self.store.put_opts(&self.below(CLAIM), content, PutMode::Create.into()).await {
            Ok(_) => Ok(Put::Made),
            Err(Error::AlreadyExists { .. }) => Ok(Put::WasThere),
            Err(error @ (Error::PermissionDenied { .. } | Error::Unauthenticated { .. })) => Err(error.into()),
            // A store that knows no conditions says so in its own way; one that fails, fails the next request too.
            Err(_) => Ok(Put::Refused),
        }
    }

    fn note(&self, digest: &BlobDigest) -> PathBuf {
        self.notes.join(format!("{}-{}.json", digest.algorithm().as_str(), digest.hex()))
    }

    async fn send(&self, staged: &Path, digest: &BlobDigest) -> io::Result<()> {
        let (mut file, key) = (File::open(staged)?, self.key("blobs", digest));
        let bytes = file.metadata()?.len();
        if bytes <= PART_BYTES {
            let mut content = Vec::new();
            file.read_to_end(&mut content)?;
            self.store.put(&key, PutPayload::from(content)).await?;
            return Ok(());
        }
        let part = part_bytes(bytes).ok_or(io::ErrorKind::FileTooLarge)?;
        // Of a push that was killed.
        self.give_up_parts(digest).await?;
        let upload = self.store.create_multipart(&key).await?;
        self.write_note(digest, &upload)?;
        let sent = async {
            let parts = self.send_parts(&file, (bytes, part), (&key, &upload)).await?;
            Ok(self.store.complete_multipart(&key, &upload, parts).await.map(drop)?)
        };
        match sent.await {
            Ok(()) => remove(&self.note(digest)),
            Err(error) => {
                // Where this fails too, collection does it. The first error matters more.
                self.give_up_parts(digest).await.ok();
                Err(error)
            }
        }
    }

    async fn send_parts(
        &self,
        file: &File,
        (bytes, part): (u64, u64),
        (key, upload): (&Key, &MultipartId),
    ) -> io::Result<Vec<PartId>> {
        let send = |number: u64| async move {
            let offset = number.saturating_mul(part);
            let length = usize::try_from(part.min(bytes.saturating_sub(offset))).map_err(io::Error::other)?;
            let mut content = vec![0; length];
            file.read_exact_at(&mut content, offset)?;
            let index = usize::try_from(number).map_err(io::Error::other)?;
            Ok::<_, io::Error>(self.store.put_part(key, upload, index, PutPayload::from(content)).await?)
        };
        let at_once = usize::try_from(PARTS_BYTES_AT_ONCE / part.max(1)).unwrap_or(1).max(1);
        futures_util::stream::iter(0..bytes.div_ceil(part)).map(send).buffered(at_once).try_collect().await
    }

    fn write_note(&self, digest: &BlobDigest, upload: &MultipartId) -> io::Result<()> {
        let (note, temporary) = (self.note(digest), self.note(digest).with_extension("new"));
        let record = PartsRecord { upload: upload.clone() };
        File::create(&temporary)?.write_all(&encode(Format::RegistryParts, &record))?;
        std::fs::rename(temporary, note)
    }

    async fn give_up_parts(&self, digest: &BlobDigest) -> io::Result<()> {
        let note = self.note(digest);
        let bytes = match std::fs::read(&note) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        // One that a power cut has left without its content names nothing, and must not keep the blob from being pushed.
        if let Ok(record) = decode::<PartsRecord>(Format::RegistryParts, &bytes) {
            // Those that were put together, or given up, are not there.
            found(self.store.abort_multipart(&self.key("blobs", digest), &record.upload).await)?;
        }
        remove(&note)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
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
        self.runtime.block_on(self.send(staged, digest))?;
        std::fs::remove_file(staged)
    }

    fn open(&self, digest: &BlobDigest) -> io::Result<Option<Box<dyn BlobReader>>> {
        let key = self.key("blobs", digest);
        let Some(meta) = found(self.runtime.block_on(self.store.head(&key)))? else { return Ok(None) };
        let tag = format!("{} {}", meta.e_tag.as_deref().unwrap_or_default(), meta.last_modified);
        let e_tag = meta.e_tag;
        let stamp = Stamp { bytes: meta.size, tag };
        let (store, runtime) = (self.store.clone(), self.runtime.clone());
        Ok(Some(Box::new(ObjectReader {
            store,
            runtime,
            key,
            e_tag,
            stamp,
            stream: None,
            at: 0,
            left_over: Bytes::new(),
        })))
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

    fn unfinished(&self) -> io::Result<Vec<BlobDigest>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.notes)? {
            let name = entry?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(".json"));
            let digest = stem.and_then(|stem| stem.split_once('-'));
            all.extend(digest.and_then(|(algorithm, hex)| BlobDigest::parse(&format!("{algorithm}:{hex}")).ok()));
        }
        Ok(all)
    }

    fn give_up(&self, digest: &BlobDigest) -> io::Result<()> {
        self.runtime.block_on(self.give_up_parts(digest))
    }

    fn list(&self, each: &mut dyn FnMut(BlobDigest, Time)) -> io::Result<()> {
        let mut objects = self.store.list(Some(&self.below("blobs")));
        while let Some(object) = self.runtime.block_on(objects.next()) {
            let object = object?;
            let key = object.location;
            let put_at = object.last_modified.timestamp_nanos_opt().unwrap_or(i64::MAX);
            let parts: Vec<_> = key.parts().collect();
            if let [.., algorithm, _, hex] = parts.as_slice()
                && let Ok(digest) = BlobDigest::parse(&format!("{}:{}", algorithm.as_ref(), hex.as_ref()))
            {
                each(digest, Time::from_unix_nanos(put_at));
            }
        }
        Ok(())
    }

    fn claim(&self, registry: &StorageRecord, is_new: bool) -> io::Result<Claimed> {
        self.runtime.block_on(self.claimed(registry, is_new))
    }
}

/// An object that is read from its front to its end in one request, as long as nobody asks for another part.
struct ObjectReader {
    store: AmazonS3,
    runtime: Handle,
    key: Key,
    /// What each request demands, so that all parts are of one copy.
    e_tag: Option<String>,
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
            let options = GetOptions {
                range: Some(GetRange::Offset(offset)),
                if_match: self.e_tag.clone(),
                ..GetOptions::default()
            };
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
            patience: Duration::from_secs(60),
        };
        // The client tries again until the server is there.
        let bucket = Bucket::new(&options, place.path(), runtime.handle().clone()).unwrap();
        super::super::conformance(&bucket, place.path());
        let other = S3 { prefix: String::new(), ..options };
        let other = Bucket::new(&other, place.path(), runtime.handle().clone()).unwrap();
        let mut count = 0;
        other.list(&mut |_, _| count += 1).unwrap();
        assert_eq!(count, 0, "another prefix is another store");
        // It ignores the condition that there be no claim yet, which is noticed.
        let registry = |id: &str| StorageRecord {
            created_at: Time::from_unix_nanos(0),
            blobs: String::new(),
            id: Some(id.to_owned()),
        };
        assert_eq!(other.claim(&registry("one"), true).unwrap(), Claimed::Ours(Guard::Nobody));
        assert_eq!(other.claim(&registry("one"), false).unwrap(), Claimed::Ours(Guard::Store), "it is there");
        let refused = other.claim(&registry("two"), true).unwrap();
        assert_eq!(refused, Claimed::Refused("its blobs belong to another registry"));
    }
}
