//! Compiles the schema with protox, so that no protoc binary is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=schema");
    let files = protox::compile(["millstream/v1/millstream.proto"], ["schema"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
