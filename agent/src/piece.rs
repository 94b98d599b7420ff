//! Unverified and verified bytes are different types: only [`Verified`] can be written for serving, or be sent.
