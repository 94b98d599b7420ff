//! Benchmarks: see micro/ and macro/.
