//! An object store in this process, as far as a registry needs one; it refuses, says nothing or breaks off when told to.

#![expect(unreachable_pub, reason = "a test has no outside")]
use perennial_registry::serve::S3;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// How it behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Every request is answered with this status.
    Refuses(u16),
    /// Parts are taken, but neither put together nor given up.
    Keeps,
    /// Nothing is answered.
    Silent,
    /// Half of an object is sent, and the connection closed.
    BreaksOff,
}

/// What it makes of a demand that there be nothing yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Conditions {
    #[default]
    Kept,
    Ignored,
    /// The request is answered with this status.
    Refused(u16),
}

#[derive(Default)]
struct Things {
    conditions: Conditions,
    objects: BTreeMap<String, Vec<u8>>,
    /// Key and parts of what is being sent in parts.
    uploads: BTreeMap<String, (String, BTreeMap<u32, Vec<u8>>)>,
    begun: usize,
    /// What takes an object's place as soon as it has been looked at.
    swaps: Option<(String, Vec<u8>)>,
}

struct State {
    mood: Mutex<Mood>,
    has_changed: Condvar,
    things: Mutex<Things>,
}

/// A bucket named `garden`.
pub struct Bucket {
    address: SocketAddr,
    state: Arc<State>,
}

impl Bucket {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state =
            State { mood: Mutex::new(Mood::Well), has_changed: Condvar::new(), things: Mutex::new(Things::default()) };
        let state = Arc::new(state);
        let serving = Arc::clone(&state);
        // They end with this process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&serving);
                // A connection that breaks is the client's affair.
                std::thread::spawn(move || talk(&state, stream.unwrap()).ok());
            }
        });
        Self { address, state }
    }

    /// How a registry reaches it.
    pub fn place(&self, patience: Duration) -> S3 {
        S3 {
            bucket: "garden".into(),
            prefix: "a/b".into(),
            endpoint: Some(format!("http://{}", self.address)),
            region: "us-east-1".into(),
            key_id: "KEY".into(),
            secret: "SECRET".into(),
            patience,
        }
    }

    pub fn turn(&self, mood: Mood) {
        *self.state.mood.lock().unwrap() = mood;
        self.state.has_changed.notify_all();
    }

    pub fn objects(&self) -> Vec<String> {
        self.state.things.lock().unwrap().objects.keys().cloned().collect()
    }

    /// Lets other bytes take a blob's place right after the next look at it.
    pub fn swap_after_look(&self, digest: &str, content: &[u8]) {
        self.state.things.lock().unwrap().swaps = Some((digest[7..].to_owned(), content.to_vec()));
    }

    pub fn keep_conditions(&self, conditions: Conditions) {
        self.state.things.lock().unwrap().conditions = conditions;
    }

    pub fn object(&self, key: &str) -> Vec<u8> {
        self.state.things.lock().unwrap().objects[key].clone()
    }

    pub fn put(&self, key: &str, content: &[u8]) {
        self.state.things.lock().unwrap().objects.insert(key.to_owned(), content.to_vec());
    }

    /// Puts an object right after the next look at it.
    pub fn put_after_look(&self, key: &str, content: &[u8]) {
        self.state.things.lock().unwrap().swaps = Some((key.to_owned(), content.to_vec()));
    }

    /// Takes an object away.
    pub fn remove_key(&self, key: &str) {
        self.state.things.lock().unwrap().objects.remove(key);
    }

    /// Takes a blob away.
    pub fn remove(&self, digest: &str) {
        self.state.things.lock().unwrap().objects.retain(|key, _| !key.ends_with(&digest[7..]));
    }

    /// Uploads in parts that were neither finished nor given up, with the lengths of their parts.
    pub fn unfinished(&self) -> Vec<Vec<usize>> {
        let things = self.state.things.lock().unwrap();
        things.uploads.values().map(|(_, parts)| parts.values().map(Vec::len).collect()).collect()
    }
}

struct Request {
    method: String,
    key: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

fn read(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().replace("%2F", "/"));
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let query = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let key = path.trim_start_matches("/garden").trim_start_matches('/').to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers.get("content-length").map_or(0, |text| text.parse().unwrap())];
    reader.read_exact(&mut body)?;
    Ok(Some(Request { method, key, query, headers, body }))
}

fn talk(state: &State, mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read(&mut reader)? {
        let mut mood = state.mood.lock().unwrap();
        if *mood == Mood::Silent {
            while *mood == Mood::Silent {
                mood = state.has_changed.wait(mood).unwrap();
            }
            return Ok(());
        }
        let mood = *mood;
        let (status, headers, mut body) = match mood {
            Mood::Refuses(status) => (status, String::new(), b"<Error><Code>Refused</Code></Error>".to_vec()),
            Mood::Keeps if request.method != "PUT" && request.query.contains_key("uploadId") => empty(500),
            Mood::Well | Mood::Keeps | Mood::Silent | Mood::BreaksOff => {
                answer(&mut state.things.lock().unwrap(), &request)
            }
        };
        let length = if request.method == "HEAD" { usize::MAX } else { body.len() };
        let length = if length == usize::MAX { String::new() } else { format!("Content-Length: {length}\r\n") };
        write!(stream, "HTTP/1.1 {status} X\r\n{headers}{length}\r\n")?;
        let is_cut = mood == Mood::BreaksOff && request.method == "GET" && !request.key.is_empty();
        if is_cut {
            body.truncate(body.len() / 2);
        }
        if request.method != "HEAD" {
            stream.write_all(&body)?;
        }
        if is_cut {
            return stream.shutdown(std::net::Shutdown::Both);
        }
    }
    Ok(())
}

type Answer = (u16, String, Vec<u8>);

fn empty(status: u16) -> Answer {
    (status, String::new(), Vec::new())
}

fn tag(content: &[u8]) -> String {
    format!("ETag: \"{}\"\r\n", super::site::sha256(content))
}

fn answer(things: &mut Things, request: &Request) -> Answer {
    let upload = request.query.get("uploadId");
    match (request.method.as_str(), upload) {
        ("GET" | "HEAD", _) if request.key.is_empty() => list(things, request),
        ("GET" | "HEAD", _) => {
            let answer = get(things, request);
            let is_swapped = |(hex, _): &mut (String, Vec<u8>)| request.key.ends_with(hex.as_str());
            if let Some((_, content)) = things.swaps.take_if(is_swapped) {
                things.objects.insert(request.key.clone(), content);
            }
            answer
        }
        ("POST", _) if request.query.contains_key("delete") => delete_all(things, &request.body),
        ("POST", None) => begin(things, &request.key),
        ("POST", Some(id)) => {
            let Some((key, parts)) = things.uploads.remove(id) else { return empty(404) };
            things.objects.insert(key, parts.into_values().flatten().collect());
            let xml = "<CompleteMultipartUploadResult><ETag>\"x\"</ETag></CompleteMultipartUploadResult>";
            (200, String::new(), xml.into())
        }
        ("PUT", Some(id)) => {
            let number = request.query["partNumber"].parse().unwrap();
            let Some((_, parts)) = things.uploads.get_mut(id) else { return empty(404) };
            parts.insert(number, request.body.clone());
            (200, tag(&request.body), Vec::new())
        }
        ("PUT", None) => put(things, request),
        ("DELETE", Some(id)) => {
            things.uploads.remove(id);
            empty(204)
        }
        ("DELETE", None) => {
            things.objects.remove(&request.key);
            empty(204)
        }
        // What a registry has no need of.
        (_, _) => empty(501),
    }
}

fn begin(things: &mut Things, key: &str) -> Answer {
    things.begun += 1;
    let id = things.begun.to_string();
    things.uploads.insert(id.clone(), (key.to_owned(), BTreeMap::new()));
    let xml = format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>");
    (200, String::new(), xml.into())
}

fn put(things: &mut Things, request: &Request) -> Answer {
    let content = match request.headers.get("x-amz-copy-source") {
        None => request.body.clone(),
        Some(source) => {
            let source = source.replace("%2F", "/");
            let Some(content) = things.objects.get(source.trim_start_matches('/').trim_start_matches("garden/")) else {
                return empty(404);
            };
            content.clone()
        }
    };
    if request.headers.contains_key("if-none-match") {
        match things.conditions {
            Conditions::Kept if things.objects.contains_key(&request.key) => return empty(412),
            Conditions::Refused(status) => return empty(status),
            Conditions::Kept | Conditions::Ignored => {}
        }
    }
    let headers = tag(&content);
    things.objects.insert(request.key.clone(), content);
    (200, headers, Vec::new())
}

fn get(things: &Things, request: &Request) -> Answer {
    let Some(content) = things.objects.get(&request.key) else { return empty(404) };
    let first = request.headers.get("range").map(|range| range[6..].split('-').next().unwrap().parse().unwrap());
    let part: &[u8] = &content[first.unwrap_or(0)..];
    if request.headers.get("if-match").is_some_and(|wanted| !tag(content).contains(wanted.as_str())) {
        return empty(412);
    }
    let headers = tag(content) + "Last-Modified: Sun, 29 Nov 2026 00:00:00 GMT\r\n";
    match first {
        _ if request.method == "HEAD" => (200, format!("{headers}Content-Length: {}\r\n", content.len()), Vec::new()),
        None => (200, headers, part.to_vec()),
        Some(first) => {
            let range = format!("Content-Range: bytes {first}-{}/{}\r\n", content.len() - 1, content.len());
            (206, headers + &range, part.to_vec())
        }
    }
}

fn list(things: &Things, request: &Request) -> Answer {
    let prefix = request.query.get("prefix").cloned().unwrap_or_default();
    let objects = things.objects.iter().filter(|(key, _)| key.starts_with(&prefix));
    let objects = objects.map(|(key, content)| {
        let bytes = content.len();
        format!(
            "<Contents><Key>{key}</Key><LastModified>2026-11-29T00:00:00.000Z</LastModified><Size>{bytes}</Size></Contents>"
        )
    });
    (200, String::new(), format!("<ListBucketResult>{}</ListBucketResult>", objects.collect::<String>()).into())
}

fn delete_all(things: &mut Things, body: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(body).into_owned();
    let keys = text.split("<Key>").skip(1).map(|rest| rest.split("</Key>").next().unwrap());
    let mut xml = String::new();
    for key in keys {
        things.objects.remove(key);
        xml.push_str(&format!("<Deleted><Key>{key}</Key></Deleted>"));
    }
    (200, String::new(), format!("<DeleteResult>{xml}</DeleteResult>").into())
}
