//! Manifests as Arrow IPC: in the bucket, in the catalog and on their way to agents, one encoding.
