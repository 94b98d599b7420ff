//! What must not compile: buffers that a NIC could outlive, or that somebody still touches while it writes.
//! `TRYBUILD=overwrite` writes the compiler's words anew; read them before they are kept.

#[test]
fn misuse_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/misuse/*.rs");
}
