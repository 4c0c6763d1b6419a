"""The command line of experts, extraction and stores."""
