//! What can go wrong in the testbed, and whose fault it is.

use std::io;

/// A failure of the testbed or of what it tests.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This machine lacks something: privilege, a tool, a kernel feature. The text names the fix.
    #[error("this machine cannot run the testbed: {0}")]
    Machine(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A command ended with an error.
    #[error("`{command}` failed: {output}")]
    Command {
        /// The command line.
        command: String,
        /// What it wrote to standard error, or how it ended.
        output: String,
    },
    /// A capture cannot be trusted or read: it dropped frames, or its file is not a capture.
    #[error("capture: {0}")]
    Capture(String),
    /// What is tested did not do what was waited for.
    #[error("{0}")]
    Subject(String),
}

/// The result of a testbed's function.
pub type Result<T> = std::result::Result<T, Error>;

/// Says what was attempted when a system call fails.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::System { what: what(), source: error.into() })
    }
}
