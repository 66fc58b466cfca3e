"""The commands of the library itself; others join the command line through the entry points `fusionlib.commands`."""
