"""The command `meanfield`: main.py makes flags and help of dataclasses, the other files hold the commands, one a subject."""
