"""The methods, one file each; start reading at `rpn`."""
