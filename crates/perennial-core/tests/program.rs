//! What the kernel would execute (row A7), and that nothing else is refused.
#![cfg(test)]

use perennial_core::process::{ExecFacts, ExecRefusal, Found, HEAD_BYTES, Process, ResolvedUser, Signal, Tree, judge};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Files by their absolute paths; those below `/hidden` are not known.
#[derive(Default)]
struct Files(BTreeMap<Vec<u8>, Option<Vec<u8>>>);

impl Files {
    fn with(mut self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.0.insert(path.as_bytes().to_vec(), Some(content.as_ref().to_vec()));
        self
    }

    fn with_directory(mut self, path: &str) -> Self {
        self.0.insert(path.as_bytes().to_vec(), None);
        self
    }
}

impl Tree for Files {
    type File = Vec<u8>;

    fn find(&self, path: &[u8]) -> Found<Vec<u8>> {
        match self.0.get(path) {
            _ if path.starts_with(b"/hidden") => Found::Unknown,
            Some(Some(content)) => Found::File(content.clone()),
            Some(None) => Found::NotExecutable,
            None => Found::Missing,
        }
    }

    fn read(&self, file: &Vec<u8>, at: u64, bytes_max: usize) -> Option<Vec<u8>> {
        let rest = usize::try_from(at).ok().and_then(|at| file.get(at..)).unwrap_or_default();
        Some(rest[..rest.len().min(bytes_max)].to_vec())
    }
}

fn process(program: &str) -> Process {
    Process {
        args: vec![program.to_owned()],
        env: vec!["PATH=/usr/bin:/bin".to_owned()],
        cwd: "/srv".to_owned(),
        user: ResolvedUser::default(),
        tty: false,
        interactive: false,
        stop_signal: Signal::TERM,
        stop_timeout_s: 10,
        capabilities: Vec::new(),
        capabilities_added: Vec::new(),
    }
}

const HOST: ExecFacts<'_> = ExecFacts { arch: "x86_64", has_handlers: false, by_init: false };

/// An ELF file of 64 bits with one header, at the end of its own header, and `tail` after it.
fn elf(machine: u16, header_kind: u32, loader: (u64, u64), tail: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0_u8; 64 + 56];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[16..18].copy_from_slice(&3_u16.to_le_bytes());
    bytes[18..20].copy_from_slice(&machine.to_le_bytes());
    bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
    bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
    bytes[56..58].copy_from_slice(&1_u16.to_le_bytes());
    bytes[64..68].copy_from_slice(&header_kind.to_le_bytes());
    bytes[72..80].copy_from_slice(&loader.0.to_le_bytes());
    bytes[96..104].copy_from_slice(&loader.1.to_le_bytes());
    bytes.extend_from_slice(tail);
    bytes
}

/// An ELF file of 32 bits for i386 with this loader.
fn elf_32(loader: &str) -> Vec<u8> {
    let mut bytes = vec![0_u8; 52 + 32];
    bytes[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
    bytes[16..20].copy_from_slice(&[2, 0, 3, 0]);
    bytes[28..32].copy_from_slice(&52_u32.to_le_bytes());
    bytes[42..46].copy_from_slice(&[32, 0, 1, 0]);
    bytes[52..56].copy_from_slice(&3_u32.to_le_bytes());
    bytes[56..60].copy_from_slice(&84_u32.to_le_bytes());
    bytes[68..72].copy_from_slice(&u32::try_from(loader.len() + 1).unwrap().to_le_bytes());
    [&bytes, loader.as_bytes(), b"\0"].concat()
}

fn with_loader(loader: &str) -> Vec<u8> {
    elf(62, 3, (120, u64::try_from(loader.len() + 1).unwrap()), &[loader.as_bytes(), b"\0"].concat())
}

fn complete() -> Vec<u8> {
    elf(62, 1, (0, 0), &[])
}

/// A system whose `/bin/sh` works.
fn system() -> Files {
    Files::default().with("/bin/sh", with_loader("/lib/ld")).with("/lib/ld", complete())
}

fn missing(program: &str, interpreter: &str) -> ExecRefusal {
    ExecRefusal::InterpreterMissing { program: program.to_owned(), interpreter: interpreter.to_owned() }
}

fn unusable(program: &str, interpreter: &str) -> ExecRefusal {
    ExecRefusal::InterpreterNotExecutable { program: program.to_owned(), interpreter: interpreter.to_owned() }
}

fn format(program: &str) -> ExecRefusal {
    ExecRefusal::Format { program: program.to_owned() }
}

/// What is said of a program with this content in a system that works.
fn verdict(content: impl AsRef<[u8]>) -> Result<(), ExecRefusal> {
    let files = system()
        .with("/bin/app", content)
        .with("/bin/gone", "#!/gone/ld\n")
        .with("/srv/own", complete())
        .with("/lib/text", "text")
        .with_directory("/lib");
    judge(&process("/bin/app"), &HOST, &files)
}

#[test]
fn scripts_need_their_interpreters() {
    let long = format!("#!/{}\n", "x".repeat(300));
    let rows: [(&str, Result<(), ExecRefusal>); 17] = [
        ("#!/bin/sh\necho\n", Ok(())),
        ("#! \t/bin/sh -e\n", Ok(())),
        ("#!/bin/sh", Ok(())),
        ("#!/bin/sh\0more", Ok(())),
        ("#!own\n", Ok(())),
        ("#!/hidden/sh\n", Ok(())),
        (&long, Ok(())),
        ("#!/gone/ld\n", Err(missing("/bin/app", "/gone/ld"))),
        ("#!/gone/ld", Err(missing("/bin/app", "/gone/ld"))),
        ("#!/bin/sh\r\n", Err(missing("/bin/app", "/bin/sh\r"))),
        ("#!sh\n", Err(missing("/bin/app", "sh"))),
        ("#!/bin/gone\n", Err(missing("/bin/gone", "/gone/ld"))),
        ("#!/lib\n", Err(unusable("/bin/app", "/lib"))),
        ("#!/lib/text\n", Err(format("/lib/text"))),
        ("#!\n", Err(format("/bin/app"))),
        ("#!", Err(format("/bin/app"))),
        ("#!   \n/bin/sh\n", Err(format("/bin/app"))),
    ];
    for (content, expected) in rows {
        assert_eq!(verdict(content), expected, "{content:?}");
    }
}

#[test]
fn programs_need_their_loaders_and_headers_the_kernel_takes() {
    let changed = |at: usize, bytes: &[u8]| {
        let mut elf = with_loader("/lib/ld");
        elf[at..at + bytes.len()].copy_from_slice(bytes);
        elf
    };
    let rows: [(&str, Vec<u8>, Result<(), ExecRefusal>); 21] = [
        ("complete", complete(), Ok(())),
        ("with a loader", with_loader("/lib/ld"), Ok(())),
        ("of 32 bits", elf_32("/lib/ld"), Ok(())),
        ("hidden loader", with_loader("/hidden/ld"), Ok(())),
        ("more after the NUL", elf(62, 3, (120, 10), b"/lib/ld\0x\0"), Ok(())),
        ("loader gone", with_loader("/lib64/ld"), Err(missing("/bin/app", "/lib64/ld"))),
        ("loader gone, 32 bits", elf_32("/lib/ld-linux"), Err(missing("/bin/app", "/lib/ld-linux"))),
        ("loader is a directory", with_loader("/lib"), Err(unusable("/bin/app", "/lib"))),
        ("loader is a text", with_loader("/lib/text"), Err(unusable("/bin/app", "/lib/text"))),
        ("empty", Vec::new(), Err(format("/bin/app"))),
        ("one byte", vec![0x7f], Err(format("/bin/app"))),
        ("magic only", b"\x7fELF".to_vec(), Err(format("/bin/app"))),
        ("half a header", complete()[..40].to_vec(), Err(format("/bin/app"))),
        ("text", b"echo hello\n".to_vec(), Err(format("/bin/app"))),
        ("another machine", elf(183, 1, (0, 0), &[]), Err(format("/bin/app"))),
        ("big endian", changed(5, &[2]), Err(format("/bin/app"))),
        ("an object file", changed(16, &[1, 0]), Err(format("/bin/app"))),
        ("headers beyond the end", changed(32, &u64::MAX.to_le_bytes()), Err(format("/bin/app"))),
        ("huge table", changed(56, &u16::MAX.to_le_bytes()), Err(format("/bin/app"))),
        ("huge loader path", changed(96, &u64::MAX.to_le_bytes()), Err(format("/bin/app"))),
        ("loader path beyond the end", changed(72, &(u64::MAX - 3).to_le_bytes()), Err(format("/bin/app"))),
    ];
    for (what, content, expected) in rows {
        assert_eq!(verdict(content), expected, "{what}");
    }
}

#[test]
fn interpreters_are_followed_as_deep_as_the_kernel_does() {
    for (scripts, is_ok) in [(1, true), (5, true), (6, false)] {
        let mut files = system().with("/s0", "#!/bin/sh\n");
        for number in 1..scripts {
            files = files.with(&format!("/s{number}"), format!("#!/s{}\n", number - 1));
        }
        let found = judge(&process(&format!("/s{}", scripts - 1)), &HOST, &files);
        assert_eq!(found.is_ok(), is_ok, "{scripts}: {found:?}");
    }
    let loop_of_two = Files::default().with("/a", "#!/b\n").with("/b", "#!/a\n");
    assert_eq!(judge(&process("/a"), &HOST, &loop_of_two), Err(ExecRefusal::TooDeep { program: "/a".to_owned() }));
}

#[test]
fn the_program_is_found_as_the_runtime_finds_it() {
    let files =
        || system().with("/bin/app", "#!/gone\n").with("/srv/sub/app", "#!/gone\n").with("/srv/app", complete());
    let found = |program: &str, path: &str, facts: &ExecFacts<'_>| {
        let process = Process { env: vec![format!("PATH={path}")], ..process(program) };
        judge(&process, facts, &files().with_directory("/usr/bin/app"))
    };
    let not_found = |program: &str| Err(ExecRefusal::NotFound { program: program.to_owned() });
    for facts in [HOST, ExecFacts { by_init: true, ..HOST }] {
        assert_eq!(found("app", "/usr/bin:/bin", &facts), Err(missing("app", "/gone")));
        assert_eq!(found("sub/app", "/bin", &facts), Err(missing("sub/app", "/gone")));
        for path in ["/srv:/bin", "/hidden:/bin", ":/bin", "bin:/bin", "/sbin:/hidden"] {
            assert_eq!(found("app", path, &facts), Ok(()), "{path}");
        }
        assert_eq!(found("app", "/sbin", &facts), not_found("app"));
        assert_eq!(found("/sbin/app", "/bin", &facts), not_found("/sbin/app"));
        let unusable = ExecRefusal::NotExecutable { program: "app".to_owned() };
        assert_eq!(found("app", "/usr/bin:/sbin", &facts), Err(unusable));
        assert_eq!(found("/hidden/app", "/bin", &facts), Ok(()));
    }
    let without_path = Process { env: Vec::new(), ..process("app") };
    assert_eq!(judge(&without_path, &HOST, &files()), Ok(()));
}

#[test]
fn what_a_handler_or_the_shell_may_take_is_left_to_them() {
    let files = system().with("/text", "echo hello\n").with("/foreign", elf(183, 1, (0, 0), &[]));
    for facts in [ExecFacts { has_handlers: true, ..HOST }, ExecFacts { by_init: true, ..HOST }] {
        for program in ["/text", "/foreign"] {
            assert_eq!(judge(&process(program), &facts, &files), Ok(()), "{program}");
        }
    }
    let other_machine = ExecFacts { arch: "s390x", ..HOST };
    assert_eq!(judge(&process("/foreign"), &other_machine, &files), Ok(()));
    assert!(missing("a", "b").is_not_found() && !format("a").is_not_found());
}

proptest! {
    #[test]
    fn hostile_files_are_read_without_harm(
        kind in 0_usize..3, tail in proptest::collection::vec(any::<u8>(), 0..HEAD_BYTES * 2),
    ) {
        let head: &[u8] = [&b""[..], b"#!", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0"][kind];
        // What comes out matters less than that something does.
        verdict([head, &tail].concat()).ok();
    }
}
