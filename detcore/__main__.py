"""`python -m detcore` is `detcore`."""
from detcore.cli import main

if __name__ == "__main__":
    main()
