"""The package `lib` of the existing conserver."""
