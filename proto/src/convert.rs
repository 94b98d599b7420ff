//! Wire messages into the words of `millstream-types`: parse, don't validate.
