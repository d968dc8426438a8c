// session-manager.ts
class SessionManager {
    private accessToken: string | null = null;
    private refreshToken: string | null = null;
    private inactivityTimer: NodeJS.Timeout | null = null;
    
    constructor(private apiBaseUrl: string) {}
    
    async login(username: string, password: string): Promise<void> {
        const response = await fetch(`${this.apiBaseUrl}/auth/login`, {
            method: 'POST',
            headers: { 'Content-Type': 'application/json' },
            body: JSON.stringify({ username, password })
        });
        
        if (!response.ok) {
            throw new Error('Login failed');
        }
        
        const data = await response.json();
        this.accessToken = data.access_token;
        this.refreshToken = data.refresh_token;
        
        // Start inactivity timer
        this.startInactivityTimer();
        
        // Store tokens securely
        this.storeTokens();
    }
    
    async refreshTokens(): Promise<void> {
        if (!this.refreshToken) {
            throw new Error('No refresh token available');
        }
        
        const response = await fetch(`${this.apiBaseUrl}/auth/refresh`, {
            method: 'POST',
            headers: { 'Content-Type': 'application/json' },
            body: JSON.stringify({ 
                refresh_token: this.refreshToken,
                language: navigator.language.split('-')[0]
            })
        });
        
        if (!response.ok) {
            // Refresh failed, redirect to login
            this.logout();
            throw new Error('Token refresh failed');
        }
        
        const data = await response.json();
        this.accessToken = data.access_token;
        this.refreshToken = data.refresh_token;
        
        // Reset inactivity timer
        this.startInactivityTimer();
        this.storeTokens();
    }
    
    async logout(): Promise<void> {
        if (this.accessToken) {
            try {
                await fetch(`${this.apiBaseUrl}/auth/logout`, {
                    method: 'POST',
                    headers: {
                        'Content-Type': 'application/json',
                        'Authorization': `Bearer ${this.accessToken}`
                    },
                    body: JSON.stringify({ 
                        access_token: this.accessToken,
                        language: navigator.language.split('-')[0]
                    })
                });
            } catch (error) {
                console.warn('Logout request failed:', error);
            }
        }
        
        this.clearTokens();
        this.stopInactivityTimer();
    }
    
    private startInactivityTimer(): void {
        this.stopInactivityTimer();
        
        // Set timer for 25 minutes (5 minutes before server timeout)
        this.inactivityTimer = setTimeout(() => {
            this.logout();
        }, 25 * 60 * 1000);
    }
    
    private stopInactivityTimer(): void {
        if (this.inactivityTimer) {
            clearTimeout(this.inactivityTimer);
            this.inactivityTimer = null;
        }
    }
    
    private storeTokens(): void {
        // Store tokens securely (consider using httpOnly cookies in production)
        localStorage.setItem('access_token', this.accessToken!);
        localStorage.setItem('refresh_token', this.refreshToken!);
    }
    
    private clearTokens(): void {
        localStorage.removeItem('access_token');
        localStorage.removeItem('refresh_token');
        this.accessToken = null;
        this.refreshToken = null;
    }
    
    // API request wrapper with automatic token refresh
    async apiRequest(url: string, options: RequestInit = {}): Promise<Response> {
        if (!this.accessToken) {
            throw new Error('No access token available');
        }
        
        const response = await fetch(url, {
            ...options,
            headers: {
                ...options.headers,
                'Authorization': `Bearer ${this.accessToken}`
            }
        });
        
        if (response.status === 401) {
            // Token expired, try to refresh
            try {
                await this.refreshTokens();
                
                // Retry request with new token
                return fetch(url, {
                    ...options,
                    headers: {
                        ...options.headers,
                        'Authorization': `Bearer ${this.accessToken}`
                    }
                });
            } catch (error) {
                // Refresh failed, redirect to login
                this.logout();
                throw error;
            }
        }
        
        return response;
    }
}
