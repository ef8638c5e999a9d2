//! Simulated usage.
