//! The configuration as written: YAML with positions, lowered into typed sections, all problems at once.
