"""The stages in order: each reads files and writes files, knows when it is done, and goes on where it was stopped."""
