//! Mode: whether a policy acts or only says what it would have done.
//!
//! People enable what they could watch first, so every policy that can refuse or remove something has this switch, and
//! a policy that observes goes through exactly the states it would go through if it acted.

/// How much power a policy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// It counts and reports what it would have done.
    Observe,
    /// It does it.
    #[default]
    Enforce,
}

impl Mode {
    /// The word in the configuration, metrics and explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }

    /// Whether it acts.
    #[must_use]
    pub const fn enforces(self) -> bool {
        matches!(self, Self::Enforce)
    }
}
