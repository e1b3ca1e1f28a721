"""Is the rest kept?"""
