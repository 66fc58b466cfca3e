"""The library's own commands; other packages add theirs through the entry points `fusionlib.commands`."""
