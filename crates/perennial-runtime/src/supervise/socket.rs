//! Unix sockets at paths of any length, and descriptors sent through them.

use super::protocol::PACKET_BYTES_MAX;
use rustix::fd::{AsFd, AsRawFd as _, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, accept_with, bind, connect, listen, recv, recvmsg, send, socket_with,
};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

/// Connections that may wait to be accepted; an event loop that is committing an exit accepts none for a while.
const BACKLOG: i32 = 64;

/// A listening socket; its file is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    fd: OwnedFd,
    directory: OwnedFd,
    name: PathBuf,
}

impl Listener {
    /// Listens at `path`; whatever is there is a leftover and removed.
    pub(crate) fn open(path: &Path, kind: SocketType) -> io::Result<Self> {
        let (directory, name) = split(path)?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(&name);
        let hidden = PathBuf::from(hidden);
        match rustix::fs::unlinkat(&directory, &hidden, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let fd = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        bind(&fd, &address(&directory, &hidden, "self")?)?;
        listen(&fd, BACKLOG)?;
        // Whoever sees the name can connect.
        rustix::fs::renameat(&directory, &hidden, &directory, &name)?;
        Ok(Self { fd, directory, name })
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Returns a short path by which another process finds the socket while this process lives.
    pub(crate) fn short_path(&self) -> PathBuf {
        short_path(&self.directory, &self.name, &std::process::id().to_string())
    }

    /// Removes the file: nobody connects any more, but those who have can still be accepted.
    pub(crate) fn hide(&self) {
        rustix::fs::unlinkat(&self.directory, &self.name, rustix::fs::AtFlags::empty()).ok();
    }

    /// Accepts a connection, if one waits.
    pub(crate) fn accept(&self) -> io::Result<Option<OwnedFd>> {
        match accept_with(&self.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Gone already if it was hidden, or the run directory was removed first.
        self.hide();
    }
}

/// Connects to the packet socket at `path`.
pub(crate) fn connect_packets(path: &Path) -> io::Result<OwnedFd> {
    let (directory, name) = split(path)?;
    let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    connect(&fd, &address(&directory, &name, "self")?)?;
    Ok(fd)
}

/// Sends a packet without waiting; tells whether it went out.
pub(crate) fn send_packet(fd: impl AsFd, packet: &[u8]) -> io::Result<bool> {
    match send(fd, packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// What a look for a packet found.
#[derive(Debug)]
pub(crate) enum Received {
    /// A packet.
    Packet(Vec<u8>),
    /// Nothing now.
    Nothing,
    /// The other end has closed.
    Closed,
}

/// Takes a packet without waiting.
pub(crate) fn receive_packet(fd: impl AsFd) -> Received {
    let mut buffer = vec![0_u8; PACKET_BYTES_MAX];
    let mut result = recv(&fd, buffer.as_mut_slice(), RecvFlags::DONTWAIT);
    if result == Err(Errno::CONNRESET) {
        // The other end closed without reading all we sent. The kernel says that once, and first; what it had sent
        // before, such as the exit code, is still to be read.
        result = recv(&fd, buffer.as_mut_slice(), RecvFlags::DONTWAIT);
    }
    match result {
        Ok((count, _)) if count > 0 => {
            buffer.truncate(count);
            Received::Packet(buffer)
        }
        Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
        Ok(_) | Err(_) => Received::Closed,
    }
}

/// Takes the descriptor that comes with the next message on a connected stream, and the bytes beside it are of no use.
pub(crate) fn receive_fd(fd: impl AsFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0_u8; 4096];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    recvmsg(fd, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "no descriptor came with the message"))
}

fn split(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let directory = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((directory, PathBuf::from(name)))
}

fn short_path(directory: &OwnedFd, name: &Path, process: &str) -> PathBuf {
    Path::new("/proc").join(process).join("fd").join(directory.as_raw_fd().to_string()).join(name)
}

fn address(directory: &OwnedFd, name: &Path, process: &str) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(short_path(directory, name, process))?)
}
