//! Compiles the protos with protox, so that no system protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // BTreeMap: maps encode in order of key, so that equal alerts have equal bytes
    let protos = ["usage", "account", "alert", "internal"]
        .map(|name| format!("proto/flopwatch/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(&protos, ["proto"])?;
    prost_build::Config::new().btree_map(["."]).compile_fds(descriptors)?;
    Ok(())
}
