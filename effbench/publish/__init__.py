"""From leaderboards to what others read: a folder of files, a README's block, a dataset on the Hugging Face Hub."""
