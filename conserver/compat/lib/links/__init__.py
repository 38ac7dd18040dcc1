"""The package `lib.links` of the existing conserver."""
