"""What effbench ships so that nothing has to be downloaded: a small trained model, and text every Python carries."""
