"""`python -m r2f_hf.cli`, for `accelerate launch -m`."""

from . import main


main()
