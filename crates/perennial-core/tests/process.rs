//! The process of a run (row A7): how settings and image combine, and what people may type.
#![cfg(test)]

use perennial_core::image::ImageConfig;
use perennial_core::process::{
    Capability, ExecSettings, GroupRef, PATH_DEFAULT, Process, ProcessError, ProcessFacts, ResolvedUser, Signal,
    UserRef, UserSpec, bounded, capabilities, env_from, hostname_of, parse_bounding, parse_bytes, parse_cpus_milli,
    parse_duration_s, parse_hostname, parse_memory_bytes, parse_volume, resolve, resolve_exec, resolve_health, user_of,
};
use perennial_core::spec::{ContainerSpec, HealthCheck, Volume};

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn facts() -> ProcessFacts {
    let user = ResolvedUser { uid: 5, gid: 6, additional_gids: vec![7], home: Some("/home/x".to_owned()) };
    ProcessFacts { user, hostname: "box".to_owned() }
}

fn image(entrypoint: &[&str], cmd: &[&str]) -> ImageConfig {
    ImageConfig { entrypoint: texts(entrypoint), cmd: texts(cmd), ..Default::default() }
}

#[test]
fn entrypoint_and_command_combine_as_in_podman() {
    // image entrypoint, image cmd, container entrypoint, container command, command of this run, result
    type Row<'a> =
        (&'a [&'a str], &'a [&'a str], Option<&'a [&'a str]>, &'a [&'a str], Option<&'a [&'a str]>, &'a [&'a str]);
    let rows: [Row<'_>; 10] = [
        (&["e"], &["c"], None, &[], None, &["e", "c"]),
        (&[], &["c", "d"], None, &[], None, &["c", "d"]),
        (&["e"], &["c"], None, &["x"], None, &["e", "x"]),
        (&["e"], &["c"], None, &["x"], Some(&["y", "z"]), &["e", "y", "z"]),
        (&["e"], &["c"], None, &["x"], Some(&[]), &["e", "x"]),
        (&["e"], &["c"], Some(&["n", "m"]), &[], None, &["n", "m"]),
        (&["e"], &["c"], Some(&["n"]), &["x"], None, &["n", "x"]),
        (&["e"], &["c"], Some(&["n"]), &[], Some(&["y"]), &["n", "y"]),
        (&["e"], &["c"], Some(&[]), &["x"], None, &["x"]),
        (&[], &["c"], None, &[], Some(&["y"]), &["y"]),
    ];
    for (at, (entrypoint, cmd, own_entrypoint, own_command, command, expected)) in rows.into_iter().enumerate() {
        let spec =
            ContainerSpec { entrypoint: own_entrypoint.map(texts), command: texts(own_command), ..Default::default() };
        let command = command.map(texts);
        let process = resolve(&spec, &image(entrypoint, cmd), command.as_deref(), &facts()).unwrap();
        assert_eq!(process.args, texts(expected), "row {at}");
    }
}

#[test]
fn a_process_without_a_program_is_refused() {
    let refuse = |spec: &ContainerSpec, image: &ImageConfig| resolve(spec, image, None, &facts()).unwrap_err();
    assert_eq!(refuse(&ContainerSpec::default(), &image(&[], &[])), ProcessError::NoCommand);
    let emptied = ContainerSpec { entrypoint: Some(Vec::new()), ..Default::default() };
    assert_eq!(refuse(&emptied, &image(&["e"], &["c"])), ProcessError::NoCommand);
    assert_eq!(refuse(&ContainerSpec::default(), &image(&[""], &["c"])), ProcessError::EmptyProgram);
    let nul = ContainerSpec { command: texts(&["a\0b"]), ..Default::default() };
    assert_eq!(refuse(&nul, &image(&[], &[])), ProcessError::NulByte { what: "command" });
    assert!(ProcessError::NoCommand.to_string().contains("after `--`"), "the error has a hint");
}

#[test]
fn environment_is_layered_and_each_name_comes_once() {
    let mut image = image(&[], &["c"]);
    image.env = texts(&["PATH=/image", "A=image", "B=image", "BARE"]);
    let spec = ContainerSpec { env: texts(&["B=own", "C=x=y", "E="]), tty: true, ..Default::default() };
    let process = resolve(&spec, &image, None, &facts()).unwrap();
    assert_eq!(
        process.env,
        texts(&[
            "A=image",
            "B=own",
            "BARE=",
            "C=x=y",
            "E=",
            "HOME=/home/x",
            "HOSTNAME=box",
            "PATH=/image",
            "TERM=xterm",
            "container=perennial"
        ])
    );
    let plain = resolve(&ContainerSpec { command: texts(&["c"]), ..Default::default() }, &image_none(), None, &facts());
    let plain = plain.unwrap().env;
    assert!(plain.contains(&format!("PATH={PATH_DEFAULT}")) && !plain.iter().any(|text| text.starts_with("TERM")));
    for bad in ["NOVALUE", "=x", ""] {
        let spec = ContainerSpec { env: texts(&[bad]), command: texts(&["c"]), ..Default::default() };
        let error = resolve(&spec, &image_none(), None, &facts()).unwrap_err();
        assert_eq!(error, ProcessError::Env { text: bad.to_owned() });
    }
}

fn image_none() -> ImageConfig {
    ImageConfig::default()
}

#[test]
fn workdir_user_and_stop_signal_come_from_the_container_else_the_image() {
    let mut image = image(&[], &["c"]);
    image.workdir = Some("/image".to_owned());
    image.user = Some("web:staff".to_owned());
    image.stop_signal = Some("SIGQUIT".to_owned());
    let process = resolve(&ContainerSpec::default(), &image, None, &facts()).unwrap();
    assert_eq!((process.cwd.as_str(), process.stop_signal, process.stop_timeout_s), ("/image", Signal::QUIT, 10));
    assert_eq!(process.user, facts().user);
    let spec = ContainerSpec {
        workdir: Some("/own".to_owned()),
        user: Some("7".to_owned()),
        stop_signal: Some("2".to_owned()),
        stop_timeout_s: Some(3),
        ..Default::default()
    };
    let process = resolve(&spec, &image, None, &facts()).unwrap();
    assert_eq!((process.cwd.as_str(), process.stop_signal, process.stop_timeout_s), ("/own", Signal::INT, 3));
    assert_eq!(user_of(&spec, &image), Ok(UserSpec { user: UserRef::Id(7), group: None }));
    let group = Some(GroupRef::Name("staff".to_owned()));
    let expected = UserSpec { user: UserRef::Name("web".to_owned()), group };
    assert_eq!(user_of(&ContainerSpec::default(), &image), Ok(expected));
    assert_eq!(user_of(&ContainerSpec::default(), &image_none()), Ok(UserSpec::root()));
    let relative = ContainerSpec { workdir: Some("tmp".to_owned()), ..Default::default() };
    let error = resolve(&relative, &image, None, &facts()).unwrap_err();
    assert_eq!(error, ProcessError::RelativeWorkdir { path: "tmp".to_owned() });
}

#[test]
fn exec_takes_the_containers_process_and_changes_what_is_asked() {
    let spec = ContainerSpec {
        command: texts(&["c"]),
        env: texts(&["A=1"]),
        workdir: Some("/w".to_owned()),
        ..Default::default()
    };
    let base: Process = resolve(&spec, &image_none(), None, &facts()).unwrap();
    let mut settings = ExecSettings { command: texts(&["ls", "-l"]), ..Default::default() };
    let process = resolve_exec(&base, &settings).unwrap();
    assert_eq!(process, Process { args: texts(&["ls", "-l"]), ..base.clone() });
    settings.env = texts(&["A=2"]);
    settings.tty = true;
    settings.user = Some(ResolvedUser::default());
    settings.workdir = Some("/".to_owned());
    let process = resolve_exec(&base, &settings).unwrap();
    assert!(["A=2", "TERM=xterm", "HOME=/"].iter().all(|text| process.env.contains(&(*text).to_owned())));
    assert_eq!((process.user.uid, process.cwd.as_str(), process.tty), (0, "/", true));
    assert_eq!(resolve_exec(&base, &ExecSettings::default()), Err(ProcessError::NoCommand));
}

#[test]
fn a_health_check_of_one_word_goes_to_the_shell() {
    let spec = ContainerSpec { command: texts(&["c"]), tty: true, interactive: true, ..Default::default() };
    let base = resolve(&spec, &image_none(), None, &facts()).unwrap();
    let args = |command: &[&str]| {
        let check = HealthCheck { command: texts(command), interval_s: 1, timeout_s: 1, retries: 1, start_period_s: 0 };
        resolve_health(&base, &check).map(|process| (process.args, process.tty, process.interactive))
    };
    assert_eq!(args(&["test -e /x"]), Ok((texts(&["/bin/sh", "-c", "test -e /x"]), false, false)));
    assert_eq!(args(&["test", "-e"]), Ok((texts(&["test", "-e"]), false, false)));
    assert_eq!(args(&[]), Err(ProcessError::NoCommand));
}

#[test]
fn users_are_parsed() {
    let name = |text: &str| UserRef::Name(text.to_owned());
    let rows = [
        ("0", UserRef::Id(0), None),
        ("alice", name("alice"), None),
        ("alice:staff", name("alice"), Some(GroupRef::Name("staff".to_owned()))),
        ("1:2", UserRef::Id(1), Some(GroupRef::Id(2))),
        ("alice:2", name("alice"), Some(GroupRef::Id(2))),
        ("4294967294", UserRef::Id(4_294_967_294), None),
        ("www-data.x", name("www-data.x"), None),
    ];
    for (text, user, group) in rows {
        assert_eq!(text.parse(), Ok(UserSpec { user, group }), "{text}");
    }
    for bad in ["", ":", "a:", ":b", "a:b:c", "4294967295", "99999999999", "a b", "a/b", "a\n"] {
        assert!(bad.parse::<UserSpec>().is_err(), "{bad:?}");
    }
}

#[test]
fn signals_are_parsed_and_shown() {
    let rows = [
        ("SIGTERM", 15, "SIGTERM"),
        ("term", 15, "SIGTERM"),
        ("9", 9, "SIGKILL"),
        ("SIGRTMIN+3", 37, "SIGRTMIN+3"),
        ("RTMAX", 64, "SIGRTMIN+30"),
        ("RTMAX-1", 63, "SIGRTMIN+29"),
        ("SIGPOLL", 29, "SIGIO"),
        ("64", 64, "SIGRTMIN+30"),
        ("WINCH", 28, "SIGWINCH"),
        ("SIGSYS", 31, "SIGSYS"),
    ];
    for (text, number, shown) in rows {
        let signal: Signal = text.parse().unwrap();
        assert_eq!((signal.number(), signal.to_string().as_str()), (number, shown), "{text}");
        assert_eq!(shown.parse(), Ok(signal));
    }
    for bad in ["", "0", "65", "-1", "SIG", "SIGFOO", "RTMIN+31", "RTMIN-1", "RTMAX+1", "999", "9 "] {
        assert!(bad.parse::<Signal>().is_err(), "{bad:?}");
    }
}

#[test]
fn amounts_are_parsed() {
    let memory = [
        ("512m", 512 << 20),
        ("512M", 512 << 20),
        ("512mb", 512 << 20),
        ("512MiB", 512 << 20),
        ("2g", 2 << 30),
        ("8388608", 8 << 20),
        ("8388608b", 8 << 20),
        ("1t", 1 << 40),
        ("8192k", 8 << 20),
    ];
    for (text, bytes) in memory {
        assert_eq!(parse_memory_bytes(text), Ok(bytes), "{text}");
        assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
    }
    for bad in
        ["", "m", "1.5g", "-1m", "12x", "5m", "0", "99999999999999999999", "18446744073709551615k", "b", "mib", "ib"]
    {
        assert!(parse_memory_bytes(bad).is_err(), "{bad:?}");
    }
    for (text, bytes) in
        [("0", 0), ("0g", 0), ("1", 1), ("512b", 512), ("4k", 4096), ("5m", 5 << 20), ("10G", 10 << 30)]
    {
        assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
    }
    for bad in ["", "m", "1.5g", "-1m", "12x", "99999999999999999999", "18446744073709551615k", "b", "ib", "none"] {
        assert!(parse_bytes(bad).is_err(), "{bad:?}");
    }
    assert_eq!(
        parse_bytes("5q").map_err(|error| error.to_string()),
        Err("number of bytes \"5q\" is not valid: use a whole number with b, k, m, g or t, such as 512m".to_owned())
    );
    assert_eq!(
        parse_memory_bytes("5m").map_err(|error| error.to_string()),
        Err("memory limit \"5m\" is not valid: at least 6m are needed to start a process".to_owned())
    );
    for (text, milli) in [("1", 1000), ("1.5", 1500), ("0.25", 250), ("0.01", 10), ("2.125", 2125), ("16.0", 16000)] {
        assert_eq!(parse_cpus_milli(text), Ok(milli), "{text}");
    }
    for bad in ["", ".", "1.", ".5", "0", "0.001", "-1", "1e3", "1.2345", "99999999999999999999", "1,5"] {
        assert!(parse_cpus_milli(bad).is_err(), "{bad:?}");
    }
    for (text, seconds) in [("30", 30), ("30s", 30), ("5m", 300), ("2h", 7200), ("0", 0)] {
        assert_eq!(parse_duration_s(text), Ok(seconds), "{text}");
    }
    for bad in ["", "s", "1d", "-1", "1.5s", "9999999h"] {
        assert!(parse_duration_s(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn volumes_are_parsed() {
    let volume = |source: &str, target: &str, read_only| {
        Ok(Volume { source: source.to_owned(), target: target.to_owned(), read_only })
    };
    assert_eq!(parse_volume("/a:/b"), volume("/a", "/b", false));
    assert_eq!(parse_volume("/a:/b:ro"), volume("/a", "/b", true));
    assert_eq!(parse_volume("/a/c d:/b/..c:rw"), volume("/a/c d", "/b/..c", false));
    for bad in
        ["", "/a", "/a:", ":/b", "a:/b", "/a:b", "/a:/b:rx", "/a:/b:ro:x", "/a:/", "/a://", "/a:/./", "/a:/b/../c"]
    {
        assert!(parse_volume(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn capabilities_are_added_and_dropped() {
    let set = |add: &[&str], drop: &[&str]| capabilities(&texts(add), &texts(drop)).unwrap();
    let names = |list: &[Capability]| list.iter().map(|c| c.name()).collect::<Vec<_>>();
    assert_eq!(
        names(&set(&[], &[]).0),
        [
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FOWNER",
            "CAP_FSETID",
            "CAP_KILL",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_SETPCAP",
            "CAP_NET_BIND_SERVICE",
            "CAP_SYS_CHROOT",
            "CAP_SETFCAP"
        ]
    );
    let (all, added) = set(&["net_admin", "CAP_CHOWN"], &["KILL"]);
    assert_eq!(names(&added), ["CAP_CHOWN", "CAP_NET_ADMIN"]);
    assert!(all.len() == 11 && names(&all).contains(&"CAP_NET_ADMIN") && !names(&all).contains(&"CAP_KILL"));
    assert_eq!(names(&set(&["net_raw"], &["ALL"]).0), ["CAP_NET_RAW"]);
    assert_eq!(set(&["all"], &["SYS_ADMIN"]).0.len(), 40);
    assert_eq!(set(&[], &["cap_all"]).0, []);
    for (add, drop) in [(&["FOO"][..], &[][..]), (&["CHOWN"], &["CAP_CHOWN"]), (&["ALL"], &["ALL"]), (&[""], &[])] {
        assert!(capabilities(&texts(add), &texts(drop)).is_err(), "{add:?} {drop:?}");
    }
}

#[test]
fn host_names_are_checked() {
    let (longest, label) = (format!("{}.{}", "a".repeat(32), "b".repeat(31)), "c".repeat(63));
    for text in ["a", "7", "web", "Garden.example", "a-b.c_d", "_x", &longest, &label] {
        assert_eq!(parse_hostname(text).unwrap(), text);
    }
    let (too_long, long_label) = (format!("{longest}d"), "c".repeat(64));
    let refused = [
        "",
        "bad host",
        "a\n",
        "\n",
        "a\0",
        "a/b",
        "-a",
        "a-",
        "a-.b",
        "a.-b",
        ".",
        ".a",
        "a.",
        "a..b",
        "ä",
        "a:b",
        &too_long,
        &long_label,
    ];
    for text in refused {
        assert!(parse_hostname(text).is_err(), "{text:?}");
    }
}

#[test]
fn a_container_is_called_by_its_setting_or_by_as_much_of_its_name_as_fits() {
    let longest = "n".repeat(128);
    let rows = [
        (None, "web", "web"),
        (Some("garden.example"), "web", "garden.example"),
        (Some(""), "web", "web"),
        (None, &longest[..64], &longest[..64]),
        (None, &longest[..65], &longest[..64]),
        (None, &longest, &longest[..64]),
    ];
    for (hostname, name, expected) in rows {
        let spec = ContainerSpec { hostname: hostname.map(str::to_owned), ..Default::default() };
        assert_eq!(hostname_of(&spec, &name.parse().unwrap()), expected, "{hostname:?} {name}");
    }
}

#[test]
fn all_capabilities_are_those_of_the_host_and_a_named_one_must_be_there() {
    let host = parse_bounding("CapEff:\t0\nCapBnd:\t000001fffeffffff\nCapAmb:\t0\n").unwrap();
    assert_eq!(host.len(), 40);
    assert!(!host.iter().any(|capability| capability.name() == "CAP_SYS_RESOURCE"));
    assert_eq!(parse_bounding("CapBnd:\tffffffffffffffff\n").unwrap(), Capability::all());
    assert_eq!(parse_bounding("CapBnd:\t0000000000000000\n").unwrap(), []);
    for text in ["", "CapEff:\t1\n", "CapBnd:\tx\n", "CapBnd:\n"] {
        assert_eq!(parse_bounding(text), None, "{text:?}");
    }
    let made = |add: &[&str], drop: &[&str], host: &[Capability]| {
        let spec = ContainerSpec { cap_add: texts(add), cap_drop: texts(drop), ..Default::default() };
        let process = resolve(&spec, &image(&[], &["c"]), None, &facts()).unwrap();
        bounded(process, &spec.cap_add, host)
    };
    for add in [&["ALL"][..], &["cap_all", "NET_ADMIN"]] {
        let process = made(add, &[], &host).unwrap();
        assert_eq!((process.capabilities, process.capabilities_added), (host.clone(), host.clone()));
    }
    assert_eq!(made(&["ALL"], &["KILL"], &host).unwrap().capabilities.len(), 39);
    assert_eq!(made(&["ALL"], &[], &Capability::all()).unwrap().capabilities, Capability::all());
    assert_eq!(made(&["NET_ADMIN"], &[], &host).unwrap().capabilities.len(), 12);
    // The default set is no wish: what the runtime makes of it on a poor host is its own affair.
    assert_eq!(made(&[], &[], &[]).unwrap().capabilities.len(), 11);
    for add in [&["SYS_RESOURCE"][..], &["ALL", "CAP_SYS_RESOURCE"]] {
        let error = made(add, &[], &host).unwrap_err();
        assert!(error.to_string().contains("CAP_SYS_RESOURCE"), "{error}");
    }
}

#[test]
fn a_name_without_a_value_takes_the_callers() {
    let caller = |name: &str| match name {
        "A" => Some("caller=1".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    };
    let rows: [(&[&str], &[&str]); 6] = [
        (&[], &[]),
        (&["A"], &["A=caller=1"]),
        (&["A=own", "B="], &["A=own", "B="]),
        (&["EMPTY"], &["EMPTY="]),
        (&["UNSET"], &[]),
        (&["UNSET", "B=x=y", "A"], &["B=x=y", "A=caller=1"]),
    ];
    for (typed, expected) in rows {
        assert_eq!(env_from(&texts(typed), &caller).unwrap(), texts(expected), "{typed:?}");
    }
    for bad in ["", "=", "=x", "A\0=b"] {
        assert!(env_from(&texts(&["A", bad]), &caller).is_err(), "{bad:?}");
    }
}
