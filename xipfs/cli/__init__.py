"""The `xipfs` command: parse, call one library function, print. One module per subcommand."""
