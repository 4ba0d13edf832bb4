//! How a command fails: what is wrong, what to do about it, and the exit code.

use perennial_core::process::ExecRefusal;
use std::fmt;

/// Exit codes of the command; they are documented in `docs/guide/commands.md` and in `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Something failed that none of the others names.
    Failed,
    /// The command line is not valid.
    Usage,
    /// A container, generation or image of that name does not exist.
    NotFound,
    /// The object is not in a state that allows it, or another command is at it.
    Conflict,
    /// The host or the caller lacks something that is needed.
    Host,
    /// Something in the store is missing or damaged.
    Damaged,
    /// The container ended but its exit is not saved yet.
    ExitIncomplete,
    /// The container could not be started.
    NotStarted,
    /// The container's command cannot be executed.
    NotExecutable,
    /// The container's command does not exist.
    CommandNotFound,
}

impl Code {
    /// Returns the process's exit code.
    pub fn number(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Host => 5,
            Self::Damaged => 6,
            Self::ExitIncomplete => 7,
            Self::NotStarted => 125,
            Self::NotExecutable => 126,
            Self::CommandNotFound => 127,
        }
    }

    /// Returns the name that `--json` errors carry.
    pub fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Host => "host",
            Self::Damaged => "damaged",
            Self::ExitIncomplete => "exit_incomplete",
            Self::NotStarted => "not_started",
            Self::NotExecutable => "not_executable",
            Self::CommandNotFound => "command_not_found",
        }
    }
}

/// A failed command.
pub struct Failure {
    /// What is wrong, with its causes.
    pub error: anyhow::Error,
    /// What to do about it.
    pub hint: Option<String>,
    /// Which exit code says so.
    pub code: Code,
}

/// Result of a command or of an operation of the engine.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// Makes a failure from its message.
    pub fn new(code: Code, message: impl fmt::Display) -> Self {
        Self { error: anyhow::anyhow!("{message}"), hint: None, code }
    }

    /// Makes a failure of what the parser of the command line found: its first paragraph, and the others as the hint.
    pub fn of_command_line(error: &clap::Error) -> Self {
        if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            return Self::new(Code::Usage, "a command is missing").hint("`perennial --help` lists them");
        }
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let text = error.to_string();
        let (message, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
        let failure = Self::new(Code::Usage, words(message.strip_prefix("error: ").unwrap_or(message)));
        match words(rest) {
            hint if hint.is_empty() => failure,
            hint => failure.hint(hint),
        }
    }

    /// Adds what to do about it, in place of an earlier hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the exit code.
    pub fn code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// Puts what was being done in front of the message.
    pub fn while_doing(mut self, what: impl fmt::Display) -> Self {
        self.error = self.error.context(what.to_string());
        self
    }

    /// Returns what to do about it; where nothing better is known, where to look.
    pub fn advice(&self) -> &str {
        if let Some(hint) = &self.hint {
            return hint;
        }
        match self.code {
            Code::Usage => "`perennial COMMAND --help` shows how it is written",
            Code::NotFound => "`perennial ps` and `perennial image ls` list what there is",
            Code::Conflict => "`perennial ps` shows its state",
            Code::Host => "`perennial doctor` shows what this machine lacks",
            Code::Damaged | Code::Failed => "`perennial doctor` looks for what is wrong",
            Code::ExitIncomplete => "nothing is lost; saving it is tried again by itself",
            Code::NotStarted | Code::NotExecutable | Code::CommandNotFound => "the generations are as they were",
        }
    }

    /// Returns the message and its causes on one line.
    pub fn one_line(&self) -> String {
        perennial_core::travel::clean(&format!("{:#}", self.error).replace('\n', " "))
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.one_line(), self.code.name())
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let (code, hint) = classify(&error);
        Self { error, hint, code }
    }
}

/// Whether an object that was to be read is missing or not what its name says.
fn is_damaged_content(cause: &(dyn std::error::Error + 'static)) -> bool {
    use perennial_store::objects::ObjectError;
    let of_tree = match cause.downcast_ref() {
        Some(perennial_store::tree::TreeError::Content { source, .. }) => Some(source),
        Some(_) | None => None,
    };
    let of_seal = match cause.downcast_ref() {
        Some(perennial_store::sealed::SealError::Manifest { .. }) => return true,
        Some(
            perennial_store::sealed::SealError::Tree(perennial_store::tree::TreeError::Content { source, .. })
            | perennial_store::sealed::SealError::Content { source, .. },
        ) => Some(source),
        Some(_) | None => None,
    };
    let Some(source) = of_tree.or(of_seal) else { return false };
    match &**source {
        ObjectError::Damaged { .. } => true,
        ObjectError::System { .. } | ObjectError::Hash(_) => {
            matches!(source.errno(), Some(rustix::io::Errno::NOENT | rustix::io::Errno::IO))
        }
    }
}

/// Finds exit code and hint for errors of the other crates, so that they need not know of either.
fn classify(error: &anyhow::Error) -> (Code, Option<String>) {
    if error.chain().any(is_damaged_content) {
        let hint = "`perennial verify --full` says which generations that touches and where to go back to";
        return (Code::Damaged, Some(hint.into()));
    }
    if let Some(refusal) = error.chain().find_map(|cause| cause.downcast_ref::<ExecRefusal>()) {
        return (if refusal.is_not_found() { Code::CommandNotFound } else { Code::NotExecutable }, None);
    }
    classify_others(error)
}

fn classify_others(error: &anyhow::Error) -> (Code, Option<String>) {
    use perennial_core::format::DecodeError;
    use perennial_core::generations::choose::ChooseError;
    use perennial_runtime::oci::OciError;
    use perennial_store::records::RecordError;
    use perennial_store::root::RootError;
    for cause in error.chain() {
        if let Some(cause) = cause.downcast_ref::<RecordError>() {
            return match cause {
                RecordError::Conflict { .. } => (Code::Conflict, Some("try again".into())),
                RecordError::Damaged { .. } | RecordError::Record { .. } => (
                    Code::Damaged,
                    Some("nothing was changed; restore records.db from a copy, the layers are not touched".into()),
                ),
                RecordError::NewerVersion { .. } => (Code::Host, None),
                RecordError::NoSpace { .. } => (Code::Failed, Some("free some space on that file system".into())),
                RecordError::Failed { .. } => (Code::Failed, None),
            };
        }
        if let Some(cause) = cause.downcast_ref::<RootError>() {
            return match cause {
                RootError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                    (Code::Host, Some("run it as root, or give another directory with --root".into()))
                }
                RootError::Format { source, .. } => match source {
                    DecodeError::NewerVersion { .. } | DecodeError::UnknownFlag { .. } => (
                        Code::Host,
                        Some("nothing was changed; use the release that wrote this root, or a newer one".into()),
                    ),
                    DecodeError::TooLarge { .. } | DecodeError::Damaged { .. } | DecodeError::OtherFormat { .. } => {
                        (Code::Damaged, Some("nothing was changed; restore format.json from a copy".into()))
                    }
                },
                RootError::Foreign { .. } | RootError::Nested { .. } | RootError::NotADirectory { .. } => {
                    (Code::Usage, Some("give another directory with --root".into()))
                }
                RootError::Unsafe { path, .. } => {
                    (Code::Host, Some(format!("chown it to the caller and chmod 700 {}", path.display())))
                }
                RootError::Io { .. } => (Code::Failed, None),
            };
        }
        if let Some(cause) = cause.downcast_ref::<ChooseError>() {
            let code = match cause {
                ChooseError::Damaged { .. } => Code::Damaged,
                ChooseError::Ambiguous { .. } => Code::Usage,
                ChooseError::Changed { .. } => Code::Conflict,
                ChooseError::Empty
                | ChooseError::UnknownSeq { .. }
                | ChooseError::NoneAsOld { .. }
                | ChooseError::OnlyQuarantinedGood { .. }
                | ChooseError::NoneGood => Code::NotFound,
            };
            return (code, Some("`perennial generations` lists what there is".into()));
        }
        if cause.downcast_ref::<perennial_core::generations::PolicyError>().is_some() {
            return (Code::Usage, Some("`perennial set --help` explains --keep, --keep-bytes and --hot".into()));
        }
        if let Some(OciError::Missing { .. } | OciError::Spawn { .. }) = cause.downcast_ref::<OciError>() {
            return (Code::Host, Some("install the package runc, or name another runtime with --runtime".into()));
        }
        if let Some(hint) = hint_of_registry(cause) {
            return (Code::Failed, hint.map(str::to_owned));
        }
        if cause.downcast_ref::<perennial_core::container::IllegalEvent>().is_some() {
            return (Code::Conflict, Some("`perennial ps` shows its state".into()));
        }
    }
    (Code::Failed, None)
}

/// What a person could do about what went wrong with a registry; nothing where it is no such thing.
fn hint_of_registry(cause: &(dyn std::error::Error + 'static)) -> Option<Option<&'static str>> {
    let pull = cause.downcast_ref::<perennial_registry::PullError>().map(perennial_registry::PullError::hint);
    pull.or_else(|| cause.downcast_ref().map(perennial_registry::repository::RepositoryError::hint))
}
