"""What several tests share: models, runs, servers, worlds and tables that are made up. Nothing here is a test."""
