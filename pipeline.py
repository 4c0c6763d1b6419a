"""`python pipeline.py COMMAND` from a checkout; installed, the command is `championship-sr`."""

from championship_sr.pipeline import main

if __name__ == "__main__":
    main()
